"""Bottlenecks: small encoders behind a prefix and decoders before the suffix (docs/bottlenecks.md)."""
