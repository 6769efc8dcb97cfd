"""Baking of stems: the two parts of a model's stage ``main``, and their run times on this CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ...bundles.blob import tensor_id
from ...bundles.manifest import Stage
from ...bundles.program import Program
from ...bundles.reader import Bundle
from ...errors import BackendError, first_line
from ...memory_limit import limited_memory
from .baked import BLOB, Baked, BakedStage, BakedStem
from .copy_times import cpu_times, open_bound, open_stage
from .optimise import optimise
from .rounding import equal_but_for_rounding
from .trial_run import noise_inputs

__all__ = ["bake_parts", "measure_stems"]

_log = logging.getLogger(__name__)

_Parts = Mapping[str, tuple[BakedStage, BakedStage]]
"""Model -> stem and rest of its stage ``main``."""


def bake_parts(
    bundle: Bundle, models: Mapping[str, Mapping[str, BakedStage]], put: Callable[[Program], None], folder: Path
) -> _Parts:
    """Optimise stem and rest of all models with a stem; return those that need no more tensors than the whole model.

    ONNX Runtime chooses the layout of a kernel by the nodes around it. Where a part has another layout than the whole,
    the model would need a second copy of the kernel, and its stem is left out.

    Args:
        bundle: an open bundle.
        models: model -> stage -> program and weights of the optimised stage.
        put: function that stores a program.
        folder: folder for temporary files.
    """
    known: dict[str, tuple[Program, tuple[str, ...]]] = {}

    def optimised(stage: Stage) -> tuple[Program, tuple[str, ...]]:
        # Members of a stem have equal files of it.
        key = " ".join((stage.program, *stage.weights))
        if key not in known:
            program, arrays = optimise(bundle.file(stage.file), None, folder)
            known[key] = program, tuple(map(tensor_id, arrays))
        return known[key]

    parts = {}
    for name, model in bundle.manifest.models.items():
        if model.stem is None:
            continue
        try:
            made = [optimised(stage) for stage in (model.stem.stem, model.stem.rest)]
        except BackendError as error:
            _log.warning("model %s: runs whole, its stem cannot be used: %s", name, first_line(error))
            continue
        if {tensor for _, weights in made for tensor in weights} <= {*models[name]["main"].weights}:
            for program, _ in made:
                put(program)
            stem, rest = (BakedStage(program=program.id, weights=weights) for program, weights in made)
            parts[name] = (stem, rest)
    return parts


def measure_stems(bundle: Bundle, baked: Baked, parts: _Parts) -> dict[str, BakedStem]:
    """Measure the CPU times of every model whole, of its stem and of its rest, on one image of noise.

    A model whose stem and rest cannot be run, or give other outputs than the whole model, is left out.

    Args:
        bundle: an open bundle.
        baked: record of a device cache that has the programs of the parts.
        parts: result of :func:`bake_parts`.
    """
    stems = {}
    for name, (stem, rest) in parts.items():
        spec = bundle.manifest.models[name].stem
        assert spec is not None  # only such models have parts
        try:
            # A bundle may come from anywhere: a value that a graph computes may have any size.
            with limited_memory(baked.files[BLOB].bytes):
                whole, first, second = open_bound(baked, name, "main"), open_stage(baked, stem), open_stage(baked, rest)
                image, frame = noise_inputs(bundle.manifest.models[name].stages["main"]), noise_inputs(spec.stem)
                values = {**frame, **first.run(frame)}
                inputs = {port.name: values[port.name] for port in spec.rest.inputs}
                expected, found = whole.run(image), second.run(inputs)
                same = (equal_but_for_rounding(found[port], output) for port, output in expected.items())
                if found.keys() != expected.keys() or not all(same):
                    raise BackendError("its parts give other outputs than the whole, once baked")
                times = cpu_times([partial(whole.run, image), partial(first.run, frame), partial(second.run, inputs)])
        except Exception as error:
            _log.warning("model %s: runs whole, its stem cannot be used: %s", name, first_line(error))
            continue
        stems[name] = BakedStem(stem=stem, rest=rest, main_ms=times[0], stem_ms=times[1], rest_ms=times[2])
    return stems
