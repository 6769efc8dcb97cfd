"""Construction of a workload's models with their weights."""
