"""Graders: grades of inputs, the bundle on disk, streaming to files, ONNX."""
