"""Trains the suffix: objective, losses, buffer, checkpoints, ranks."""
