"""ESC-10 as the other tools want it."""

from runtime_server.lab.clips import FOLDS, SAMPLE_RATE, Array, Clips, load_clips, probe_accuracy

__all__ = ["FOLDS", "SAMPLE_RATE", "Array", "Clips", "load_clips", "probe_accuracy"]
