"""What a block costs on a target."""
