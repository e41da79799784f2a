"""Loading, announcing and reporting of a server; `runtime_server.server` puts it together."""
