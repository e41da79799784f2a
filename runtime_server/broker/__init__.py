"""The broker: its process, its access rules, and the server's connection to it."""
