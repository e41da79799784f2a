"""Bundles, tables and heads that take over while the device runs."""
