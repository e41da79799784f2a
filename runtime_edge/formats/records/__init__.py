"""Records that are signed or kept on their own: tables, heads, releases."""
