"""A finished run made smaller or faster: whole-number weights, fewer heads or layers, students, ONNX."""
