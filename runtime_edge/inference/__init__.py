"""Running the encoder, or any prefix of it, on an inference runtime."""
