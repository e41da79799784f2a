"""What a server loads, announces and says of itself; `runtime_server.server` puts it together."""
