"""A bundle beside plain ONNX Runtime sessions of the same models."""
