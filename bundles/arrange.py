"""Arrangement of a bundle: which weights of each model run, and where all tensors lie in the blob.

Equal models, in whatever order they were reverted, give equal arrangements. So going back makes the bundle that was
there before, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .blob import PAGE, TENSOR_ALIGNMENT
from .form_specs import FormSpec
from .forms import stored_of
from .manifest import (
    FORMS_VERSION,
    PLAIN_VERSION,
    FileSpec,
    Manifest,
    ModelSpec,
    OriginalsSpec,
    ProgramSpec,
    Stage,
    TensorSpec,
)
from .tensor_users import TensorUsers

__all__ = ["arrange", "stages_of"]


def arrange(
    content: Manifest,
    models: Mapping[str, ModelSpec],
    originals: OriginalsSpec,
    tensors: Mapping[str, TensorSpec],
    forms: Mapping[str, FormSpec],
) -> Manifest:
    """Return the manifest of a bundle in which other weights run.

    Segments hold the tensors of the models that run, as :func:`.blob.layout` places them. The tensors that only other
    models use come behind them, in no segment. Files and the blob get no hashes here, because nothing is written.

    Args:
        content: manifest of a bundle with the same queries.
        models: name -> model that runs.
        originals: models that do not run.
        tensors: id -> dtype, shape and length, for the tensors of all models.
        forms: id -> form, for the computed kernels of all models.
    """
    users = TensorUsers(lambda tensor, array: None)
    for name, model in models.items():
        for weight in (*model.weights, *model.anchors):
            users.add_stored(name, weight, tensors, forms)
    placed, end = users.layout(), 0
    apart: dict[str, TensorSpec] = {}
    waiting = {weight for other in originals.models.values() for weight in (*other.model.weights, *other.model.anchors)}
    for tensor in sorted(set(stored_of(waiting, forms)) - placed.tensors.keys()):
        begin = _up(end, TENSOR_ALIGNMENT) if apart else _up(placed.bytes, PAGE) + PAGE
        apart[tensor] = tensors[tensor].model_copy(update={"offset": begin})
        end = begin + tensors[tensor].length
    running = {
        name: model.model_copy(
            update={"segments": tuple(each for each, spec in placed.segments.items() if name in spec.models)}
        )
        for name, model in models.items()
    }
    files = {name for model in running.values() for name in stages_of(model)}
    files |= {name for other in originals.models.values() for name in stages_of(other.model)}
    before = {name for model in content.models.values() for name in stages_of(model)}
    if content.originals is not None:
        before |= {name for other in content.originals.models.values() for name in stages_of(other.model)}
    kept = [name for name in content.files if name not in before - files]
    unknown = FileSpec(bytes=0, sha256="")
    computed = users.forms()
    unused = {weight: forms[weight] for weight in sorted(waiting & forms.keys() - computed.keys())}
    return content.model_copy(
        update={
            "schema_version": FORMS_VERSION if computed else PLAIN_VERSION,
            "models": running,
            "programs": _programs(running),
            "tensors": {**placed.tensors, **apart},
            "forms": computed,
            "segments": placed.segments,
            "originals": originals.model_copy(update={"forms": unused}),
            "files": {
                **{name: content.files.get(name, unknown) for name in (*kept, *sorted(files - set(kept)))},
                content.blob: FileSpec(bytes=max(placed.bytes, end), sha256=""),
            },
        }
    )


def stages_of(model: ModelSpec) -> dict[str, Stage]:
    """Return file -> stage, for all stages of a model and the parts of its stage ``main``."""
    return {stage.file: stage for stage in _stages(model)}


def _stages(model: ModelSpec) -> Iterator[Stage]:
    yield from model.stages.values()
    if model.stem is not None:
        yield from (model.stem.stem, model.stem.rest)


def _programs(models: Mapping[str, ModelSpec]) -> dict[str, ProgramSpec]:
    """Return the entries of the programs that models run."""
    programs: dict[str, ProgramSpec] = {}
    for name, model in models.items():
        for stage in model.stages.values():
            others = programs[stage.program].models if stage.program in programs else ()
            programs[stage.program] = ProgramSpec(models=(*others, name), inputs=len(stage.weights))
    return programs


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
