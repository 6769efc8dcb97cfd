"""Lowering of one model of a workload to clean ONNX graphs."""
