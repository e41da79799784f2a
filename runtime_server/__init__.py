"""The server: ingest, suffix, losses, training, releases (torch)."""
