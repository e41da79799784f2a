"""Reads weights trained by others or by this project, and makes checkpoints of them."""
