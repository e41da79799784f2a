"""Turns segments, tables and measurements into one bundle."""
