"""`ssc demo`: the whole loop on one machine, with real processes, and a report of what happened."""

COMMANDS = {"demo": ("runtime_server.demo.demo_command:demo", "Show the whole loop on one machine, with a report.")}
"""The command that this package adds to `ssc`: an entry point, imported without the rest."""
