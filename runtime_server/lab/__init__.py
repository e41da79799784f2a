"""Devices and a server on networks that are made on this machine, and what is measured there (`ssc bench`)."""

COMMANDS = {
    "bench": ("runtime_server.lab.bench_commands:bench", "Measure policies on shaped networks; compare measurements."),
}
"""What it adds to `ssc`; registered as an entry point, imported without the rest."""
