"""What a manifest says of its encoder: how its file was read, and how its log-mel is made."""
