"""Reads an encoder's file into a graph, and splits the graph into segments."""
