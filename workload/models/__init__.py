"""Construction of a workload's PyTorch models with their weights."""
