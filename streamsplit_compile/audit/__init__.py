"""Attacks on what leaves a device, as an auditor makes them, to measure what it gives away."""
