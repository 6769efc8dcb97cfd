"""One model of a workload as clean ONNX graphs."""
