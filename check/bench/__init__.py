"""Benchmark of a bundle beside plain ONNX Runtime sessions of the same models."""
