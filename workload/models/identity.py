"""Identity of models: which queries of a workload use one model. Needs no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

from ..document.schema import Query, Workload

__all__ = ["PRETRAINED_FOLDER", "identity", "models_of"]

PRETRAINED_FOLDER = "pretrained_model_name_or_path"
"""Argument of ``from_pretrained`` in Hugging Face and segmentation-models-pytorch: a folder, or a name on the hub."""


def identity(query: Query, root: Path) -> str:
    """Return a key of a query's model; two queries with equal keys use one model.

    Such queries have the same factory or ONNX file, arguments, weights, base, input, outputs, task, decoder and
    activation.

    Args:
        query: query of a workload.
        root: folder that relative paths start from.
    """
    fields = query.model.model_dump(mode="json")
    for name in ("weights", "onnx", "base"):
        reference = fields[name]
        if reference and not reference.startswith("package:"):
            fields[name] = str((root / Path(reference).expanduser()).resolve())
    return json.dumps([query.task, query.decode, query.activation, fields], sort_keys=True)


def models_of(workload: Workload) -> dict[str, str]:
    """Return query name -> model name for the queries of a workload. A model has the name of the first query that uses
    it."""
    first: dict[str, str] = {}
    return {query.name: first.setdefault(identity(query, workload.root), query.name) for query in workload.queries}
