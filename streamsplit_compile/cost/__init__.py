"""Costs of blocks and links on targets."""
