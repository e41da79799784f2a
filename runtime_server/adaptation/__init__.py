"""Adapts an encoder to what its devices hear now, through the scales and shifts of its normalisation layers alone.

Devices only run forward: they send windows about which their head is unsure. The methods are in `methods`; each takes
batches of such windows and moves the same few parameters (docs/method.md, section 9).
"""
