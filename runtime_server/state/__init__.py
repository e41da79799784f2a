"""What the server keeps on disk between two runs."""
