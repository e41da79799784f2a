"""A measurement as tables, pictures and a page, and its goals."""
