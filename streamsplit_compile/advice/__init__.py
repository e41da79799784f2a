"""What to do with a bundle: what each way of running it would cost."""
