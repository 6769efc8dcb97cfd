"""What a merge writes: weights, merge.json, workload.yaml and the journal of its trials."""
