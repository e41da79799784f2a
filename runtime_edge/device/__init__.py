"""A device, from its audio source to its results."""
