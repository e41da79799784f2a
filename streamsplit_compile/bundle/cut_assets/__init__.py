"""Fits and measures a bundle's bottlenecks and exits, and carries them over to new releases."""
