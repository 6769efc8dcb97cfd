"""Merging: find layers that models can share, retrain the models together, and write the merged workload."""
