"""Models of a workload as PyTorch modules, made by a factory or converted from an ONNX file."""
