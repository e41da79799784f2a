"""Records that are signed or kept separately: tables, heads, releases."""
