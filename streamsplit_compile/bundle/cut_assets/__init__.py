"""The parts of a bundle at its cuts, besides blocks: bottlenecks and exits, fitted, measured and kept over releases."""
