"""Reads weights trained by others or by this project, and turns them into checkpoints."""
