"""The commands that this package adds to `ssc`: an entry point, imported without the rest of the package."""

from __future__ import annotations

COMMANDS = {
    "server": ("runtime_server.cli.server_commands:server", "Run and inspect the server."),
    "deploy": ("runtime_server.cli.deploy_command:deploy", "Publish a bundle to devices."),
    "splitter explain": (
        "runtime_server.cli.device_table_commands:explain",
        "Explain a table's choice.",
    ),
    "splitter push": ("runtime_server.cli.device_table_commands:push", "Give running devices another table."),
    "splitter merge": (
        "runtime_server.cli.device_table_commands:merge_command",
        "Merge what devices learnt into a table.",
    ),
}
