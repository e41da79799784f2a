"""Devices and a server on emulated networks, and the measurements there (`ssc bench`)."""

COMMANDS = {
    "bench run": ("runtime_server.lab.bench_commands:run", "Compare policies on emulated networks."),
    "bench show": ("runtime_server.lab.bench_commands:show_command", "Print a measurement's tables."),
    "bench compare": ("runtime_server.lab.bench_commands:compare_command", "Compare two measurements."),
}
"""The command that this package adds to `ssc`: an entry point, imported without the rest."""
