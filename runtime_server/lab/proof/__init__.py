"""A measurement as tables, pictures and a page, and the goals it is held to."""
