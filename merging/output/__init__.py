"""Output of a merge: weights, merge.json, workload.yaml and the journal of the search's trials."""
