"""Lowers a segment to an ONNX or TFLite file."""
