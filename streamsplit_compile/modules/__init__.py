"""Sub-models: encoders without some of the channels inside their blocks."""
