"""The commands that run on a server."""
