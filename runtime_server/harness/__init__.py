"""Processes, networks and pacing for measuring whole systems on one machine; used by the demo and the lab."""
