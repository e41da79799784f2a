"""Frames from the broker to answers."""
