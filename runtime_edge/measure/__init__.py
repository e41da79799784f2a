"""What this device really takes: times, memory, and energy where a meter is there (`ssc bench device`)."""
