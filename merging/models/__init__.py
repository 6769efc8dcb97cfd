"""The models of a workload as PyTorch modules, whatever file they came from."""
