"""The commands that this package adds to `ssc`; registered as an entry point, imported without the rest."""

from __future__ import annotations

COMMANDS = {
    "server": ("runtime_server.cli.server_commands:server", "Run and look at the server."),
    "deploy": ("runtime_server.cli.deploy_command:deploy", "Put a bundle where devices find it."),
    "splitter explain": (
        "runtime_server.cli.device_table_commands:explain",
        "Say why a table chooses what it chooses.",
    ),
    "splitter push": ("runtime_server.cli.device_table_commands:push", "Give running devices another table."),
    "splitter merge": (
        "runtime_server.cli.device_table_commands:merge_command",
        "Fold what devices learnt into a table.",
    ),
}
