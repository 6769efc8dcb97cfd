"""Drafts of workload files for ``gemel init``, from models and sources of frames."""
