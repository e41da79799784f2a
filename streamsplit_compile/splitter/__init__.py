"""Training and judging splitter tables."""
