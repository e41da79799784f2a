"""Bytes on the way: budgets, what has passed, and what the kernel counts."""
