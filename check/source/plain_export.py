"""Export of each model of a workload with PyTorch's defaults, which is what a user has without gemel."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...compiler.lowering.lower import words_of
from ...compiler.lowering.onnx_source import read_onnx
from ...workload.document.paths import locate
from ...workload.document.schema import Workload
from ...workload.models.identity import models_of

__all__ = ["export_plain"]

_MOST_INSIDE = 1 << 30
"""Maximum bytes of weights to write into an ONNX file itself; a file holds at most 2 GB."""


def export_plain(workload: Workload, folder: Path) -> dict[str, Path]:
    """Export the main stage of every distinct model of a workload with the defaults of PyTorch's exporter.

    Args:
        workload: workload with the models.
        folder: folder to write the files to.

    Returns:
        Model name -> ONNX file. A model that came as an ONNX file stays as it is, except for the input size.
    """
    files: dict[str, Path] = {}
    model_of = models_of(workload)
    for query in workload.queries:
        if model_of[query.name] != query.name:
            continue
        files[query.name] = folder / f"{query.name}.onnx"
        if query.model.onnx is not None:
            source = locate(query.model.onnx, workload.root, f"query {query.name}: onnx")
            model = read_onnx(source, query.task, query.model.input, words_of(query)).model
            size = sum(
                each.const_value.nbytes for each in model.graph.initializers.values() if each.const_value is not None
            )
            beside = f"{query.name}.data" if size > _MOST_INSIDE else None
            ir.save(model, files[query.name], external_data=beside)
        else:
            # Importing these takes seconds, and ONNX files need no PyTorch.
            from ...compiler.lowering.export import run_exporter
            from ...compiler.lowering.pytorch import cut_query

            stage = cut_query(query, workload.root).stages["main"]
            run_exporter(stage, f"query {query.name}", optimize=True).save(files[query.name], external_data=False)
    return files
