"""Labelled recordings and what is trained on them: heads and linear probes."""
