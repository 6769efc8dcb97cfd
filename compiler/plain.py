"""What a user has without gemel: each model exported by PyTorch on its own, to compare with."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from ..errors import CompileError
from ..workload.models import identity
from ..workload.paths import locate
from ..workload.schema import Workload
from . import onnx_source
from .export import OPSET, quiet
from .heads import StageModule
from .lower import cut_query

__all__ = ["export_plain", "export_stage"]


def export_plain(workload: Workload, folder: Path) -> dict[str, Path]:
    """Export the main stage of every distinct model with PyTorch's defaults, weights inside the file.

    Args:
        workload: whose models.
        folder: where the files go.

    Returns:
        Model name (its first query) to file. Models that came as ONNX are as they came, but for the input size.
    """
    files: dict[str, Path] = {}
    seen: set[str] = set()
    for query in workload.queries:
        key = identity(query.model, query.task, workload.root)
        if key in seen:
            continue
        seen.add(key)
        files[query.name] = folder / f"{query.name}.onnx"
        if query.model.onnx is not None:
            source = locate(query.model.onnx, workload.root, f"query {query.name}: onnx")
            ir.save(onnx_source.read(source, query.task, query.model.input).model, files[query.name])
        else:
            export_stage(cut_query(query, workload.root).stages["main"], files[query.name])
    return files


def export_stage(stage: StageModule, path: Path) -> None:
    """``torch.onnx.export`` as its documentation shows it: optimised, BatchNorm folded, a free batch."""
    free = tuple(dict.fromkeys(stage.free.get(port, {}), torch.export.Dim.DYNAMIC) for port in stage.inputs)
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                stage.module,
                tuple(stage.inputs.values()),
                path,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                dynamic_shapes=free,
                verbose=False,
            )
    except Exception as error:
        raise CompileError(f"{path.name}: torch.onnx.export failed: {str(error).splitlines()[0]}") from error
