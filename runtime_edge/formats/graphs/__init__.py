"""What a compiled block may contain, checked before an inference runtime reads it."""
