"""Exits: small maps from an activation to the embedding that the whole encoder makes (docs/exits.md)."""
