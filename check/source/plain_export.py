"""Export of each model by PyTorch on its own, which is what a user has without gemel."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...compiler.lowering import onnx_source
from ...compiler.lowering.export import run_exporter
from ...compiler.lowering.lower import cut_query
from ...workload.document.paths import locate
from ...workload.document.schema import Workload
from ...workload.models.factory import models_of

__all__ = ["export_plain"]


def export_plain(workload: Workload, folder: Path) -> dict[str, Path]:
    """Export the main stage of every distinct model with PyTorch's defaults, with the weights inside the file.

    Args:
        workload: workload with the models.
        folder: folder to write the files to.

    Returns:
        Model name -> file. A model that came as an ONNX file stays as it is, except for the input size.
    """
    files: dict[str, Path] = {}
    model_of = models_of(workload)
    for query in workload.queries:
        if model_of[query.name] != query.name:
            continue
        files[query.name] = folder / f"{query.name}.onnx"
        if query.model.onnx is not None:
            source = locate(query.model.onnx, workload.root, f"query {query.name}: onnx")
            ir.save(onnx_source.read_onnx(source, query.task, query.model.input).model, files[query.name])
        else:
            stage = cut_query(query, workload.root).stages["main"]
            run_exporter(stage, f"query {query.name}", optimize=True).save(files[query.name], external_data=False)
    return files
