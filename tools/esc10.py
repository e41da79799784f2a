"""Makes ESC-10's clips available to the other tools."""

from runtime_server.lab.clips import FOLDS, SAMPLE_RATE, Array, Clips, load_clips, probe_accuracy

__all__ = ["FOLDS", "SAMPLE_RATE", "Array", "Clips", "load_clips", "probe_accuracy"]
