"""Measures this device: times, memory, and energy if there is a meter (`ssc bench device`)."""
