"""Processes, networks and pacing for measuring whole systems on one machine; for demo and lab."""
