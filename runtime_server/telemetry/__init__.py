"""Health, metrics and energy of the server, and its view of the fleet."""
