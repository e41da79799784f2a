"""Advice on what to do with a bundle, by the cost of each way to run it."""
