"""Encoders that are compiled to see which can be."""
