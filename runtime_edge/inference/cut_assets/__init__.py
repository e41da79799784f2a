"""What belongs to a cut rather than to a block: bottlenecks and exits, as a device loads them."""
