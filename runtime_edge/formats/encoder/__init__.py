"""A manifest's description of its encoder: how its file was read, and how its log-mel image is made."""
