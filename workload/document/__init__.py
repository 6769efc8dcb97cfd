"""Schema and reader of workload.yaml, and lookup of the files that a workload names."""
