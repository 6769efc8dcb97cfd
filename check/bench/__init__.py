"""Benchmark that compares a bundle with plain ONNX Runtime sessions of the same models."""
