"""An encoder's file to a graph, and the graph to segments."""
