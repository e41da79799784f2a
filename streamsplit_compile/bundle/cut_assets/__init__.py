"""What a bundle has at its cuts beside blocks: bottlenecks and exits, fitted, measured and carried on."""
