"""Models of a workload, built with their weights."""
