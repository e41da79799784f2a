"""What `tools.train_reference` is made of."""
