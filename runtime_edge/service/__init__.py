"""The device as a service: status, heartbeat, metrics, systemd."""
