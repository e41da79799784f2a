"""A segment to an ONNX or TFLite file."""
