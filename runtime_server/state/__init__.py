"""What the server keeps on disk between runs."""
