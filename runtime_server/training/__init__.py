"""Training the suffix: objective, losses, buffer, checkpoints, ranks."""
