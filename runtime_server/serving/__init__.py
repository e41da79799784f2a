"""Loading, announcing and reporting for a server; `runtime_server.server` puts the parts together."""
