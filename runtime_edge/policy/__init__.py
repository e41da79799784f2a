"""Choosing the cut of a window, and the memory on which the choice depends."""
