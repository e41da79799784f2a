"""Frames that wait on the disk until they are acknowledged."""
