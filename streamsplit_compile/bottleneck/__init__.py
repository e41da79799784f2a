"""Bottlenecks: small encoders after a prefix and decoders before the suffix (docs/bottlenecks.md)."""
