"""The `ssc` command and what it shows."""
