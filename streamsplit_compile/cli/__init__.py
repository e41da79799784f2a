"""The `ssc` command and its output."""
