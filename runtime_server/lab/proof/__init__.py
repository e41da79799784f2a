"""A measurement as tables, pictures and a page, together with its goals."""
