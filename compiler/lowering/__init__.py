"""Lowering of one model of a workload: from a PyTorch module or an ONNX file to ONNX graphs that passes can edit."""
