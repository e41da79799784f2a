"""The way of frames from the broker to their answers."""
