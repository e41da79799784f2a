"""Weights that others, or this project, have trained: read and turned into checkpoints."""
