"""Segments, tables and measurements to one bundle."""
