"""The parts of `tools.train_reference`."""
