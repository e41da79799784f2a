"""Public encoder families, compiled to find out which ones work."""
