"""The broker: its process, who may do what, and the server's connection to it."""
