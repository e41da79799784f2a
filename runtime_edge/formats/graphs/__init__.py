"""What a compiled block may hold, checked before an inference runtime reads it."""
