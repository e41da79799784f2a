"""Choosing the cut of a window, and what the device remembers to choose by."""
