"""Figures of a bundle for ``gemel inspect``: its contents, what is shared, and what was made from it for devices."""

from __future__ import annotations

from typing import Any

from ...bundles.keep_reverts import reverted_queries
from ...bundles.manifest import ModelSpec
from ...bundles.merge_report import read_merge
from ...bundles.reader import Bundle
from ...runtime.engines.record import Engines
from ...runtime.engines.store import engines_in
from ...runtime.ort.bake import private_copies_of
from ...runtime.ov.accepted import read_acceptance
from .form_figures import form_figures
from .input_words import input_figures
from .original_figures import least_bytes, original_figures, unique_bytes

__all__ = ["describe", "least_memory", "sizes"]


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the figures of a bundle as a value that JSON can hold.

    ``bytes`` is the result of :func:`sizes`. ``packings`` holds the run times of INT8 models on this CPU with and
    without private copies of weights, if they were measured. ``engines`` lists the TensorRT engines in the bundle's
    device cache, one entry per library and set of devices. ``device`` has the workload's settings, and the bytes that
    the largest model needs. ``stems`` lists the first layers that models have in common. ``forms`` is the result of
    :func:`.form_figures.form_figures`, ``originals`` that of :func:`.original_figures.original_figures`. ``merge`` is
    present if the workload was merged.

    Raises:
        BundleError: an engine is damaged.
    """
    content = bundle.manifest
    figures = {
        "device": {
            **content.device.model_dump(),
            "sla_ms": content.sla_ms,
            "objective": content.objective,
            "least_bytes": least_memory(bundle),
        },
        "feeds": {name: feed.model_dump() for name, feed in content.feeds.items()},
        "queries": {name: query.model_dump(mode="json") for name, query in content.queries.items()},
        "models": {name: _model(bundle, name, model) for name, model in content.models.items()},
        "programs": len(content.programs),
        "tensors": len(content.tensors),
        "segments": len(content.segments),
        "stems": _stems(bundle),
        "forms": form_figures(content),
        "originals": original_figures(bundle),
        "bytes": sizes(bundle),
        "packings": {
            name: {**copy.model_dump(), "bytes": copy.bytes, "packed": copy.is_faster}
            for name, copy in private_copies_of(bundle).items()
        },
        "bf16": _bf16(bundle),
        "engines": [_engines(bundle, engines) for engines in engines_in(bundle)],
    }
    merge = read_merge(bundle)
    if merge is not None:
        gone = reverted_queries(bundle)
        accuracies = {
            name: {**query.model_dump(exclude={"model"}), "reverted": name in gone}
            for name, query in merge.queries.items()
        }
        figures["merge"] = {
            **merge.model_dump(include={"original_bytes", "merged_bytes", "saving"}),
            "queries": accuracies,
        }
    return figures


def least_memory(bundle: Bundle) -> int:
    """Return the minimum bytes of weights in memory with which every model of a bundle can run.

    This is the largest model that is swapped, plus the private copies of all models that are not swapped. A backend may
    need more: it may align weights, or keep private copies of further models.
    """
    return least_bytes(bundle.manifest)


def sizes(bundle: Bundle) -> dict[str, int]:
    """Return the bytes of a bundle's weights, counted in five ways.

    ``queries`` is what one session per query would hold, ``models`` what one session per model would hold, ``unique``
    what the bundle holds for models that run, where a kernel that is computed counts as what it is computed from,
    ``saved`` the difference of the last two, and ``file`` the space of the blob on disk, where padding takes none.
    """
    content = bundle.manifest
    total = sum(model.bytes for model in content.models.values())
    unique = unique_bytes(content)
    return {
        "queries": sum(content.models[query.model].bytes for query in content.queries.values()),
        "models": total,
        "unique": unique,
        "saved": total - unique,
        "file": bundle.file(content.blob).stat().st_blocks * 512,
    }


def _model(bundle: Bundle, name: str, model: ModelSpec) -> dict[str, Any]:
    segments = [bundle.manifest.segments[segment] for segment in model.segments]
    return {
        "program": model.stages["main"].program,
        "bytes": model.bytes,
        "shared_bytes": sum(segment.length for segment in segments if len(segment.models) > 1),
        "mode": model.mode,
        "precision": model.precision,
        "reverted": name in bundle.manifest.reverted,
        "decode": model.decode.kind,
        "input": input_figures(model),
        "queries": [query for query, spec in bundle.manifest.queries.items() if spec.model == name],
    }


def _stems(bundle: Bundle) -> dict[str, Any]:
    """Return id of a stem -> models that begin with the stem, and bytes of the stem's weights."""
    stems: dict[str, Any] = {}
    for name, model in bundle.manifest.models.items():
        if model.stem is not None:
            size = sum(map(bundle.manifest.bytes_of, set(model.stem.stem.weights)))
            stems.setdefault(model.stem.id, {"models": [], "bytes": size})["models"].append(name)
    return stems


def _bf16(bundle: Bundle) -> dict[str, Any]:
    """Return query -> its agreement in bf16 with float32, and whether ``auto-cpu`` may run its model in bf16."""
    known = read_acceptance(bundle)
    if known is None:
        return {}
    accepted = known.models(bundle)
    return {
        name: {**each.model_dump(), "model": query.model, "target": query.target, "accepted": query.model in accepted}
        for name, query in bundle.manifest.queries.items()
        if (each := known.queries.get(name)) is not None
    }


def _engines(bundle: Bundle, engines: Engines) -> dict[str, Any]:
    users: dict[str, list[str]] = {}
    for name, model in bundle.manifest.models.items():
        for stage, spec in model.stages.items():
            users.setdefault(spec.program, []).append(name if stage == "main" else f"{name}/{stage}")
    return {
        "title": engines.title,
        "folder": str(engines.folder),
        "library": engines.library,
        "version": engines.version,
        "targets": list(engines.targets),
        "device": engines.device,
        "bytes": engines.bytes,
        "programs": {
            program: {
                "models": users.get(program, []),
                **engine.choice.model_dump(),
                "inputs": engine.inputs,
                "layers": engine.layers,
                "bytes": engine.bytes,
            }
            for program, engine in engines.engines.items()
        },
        "refused": {
            program: {"models": users.get(program, []), "reason": reason} for program, reason in engines.refused.items()
        },
    }
