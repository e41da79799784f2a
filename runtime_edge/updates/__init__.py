"""Bundles, tables and heads that are replaced while the device runs."""
