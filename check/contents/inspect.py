"""``gemel inspect``: what is in a bundle and what is shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ...bundles.merge_summary import read_merge
from ...bundles.reader import Bundle
from ...runtime.engines.record import Engines, ModeChoice
from ...runtime.engines.store import engines_in
from ...runtime.ort.bake import packings

__all__ = ["bundle_tables", "describe", "sizes"]


def describe(bundle: Bundle) -> dict[str, Any]:
    """The figures of a bundle.

    ``bytes`` is what :func:`sizes` gives. ``packings`` has what was measured of INT8 models on this CPU, if they ran on
    it. ``engines`` lists what was built from it and lies in its device cache, one entry a library and set of devices.
    ``merge`` is there where the workload was merged.

    Raises:
        BundleError: an engine is damaged.
    """
    content = bundle.manifest
    models = {
        name: {
            "program": model.stages["main"].program,
            "bytes": model.bytes,
            "shared_bytes": sum(
                content.segments[segment].length
                for segment in model.segments
                if len(content.segments[segment].models) > 1
            ),
            "mode": model.mode,
            "precision": model.precision,
            "queries": [query for query, spec in content.queries.items() if spec.model == name],
        }
        for name, model in content.models.items()
    }
    merge = read_merge(bundle)
    return {
        "models": models,
        "programs": len(content.programs),
        "tensors": len(content.tensors),
        "segments": len(content.segments),
        "bytes": sizes(bundle),
        "packings": {
            name: {**packing.model_dump(), "bytes": packing.bytes, "packed": packing.is_faster}
            for name, packing in packings(bundle).items()
        },
        "engines": [_engines(bundle, each) for each in engines_in(bundle)],
        **({"merge": merge.model_dump(exclude={"shared"})} if merge is not None else {}),
    }


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of weights.

    ``queries`` is what one session a query would hold, ``models`` one session a model, ``unique`` what the bundle
    holds, ``file`` the blob's allocated size on disk (its padding is holes).
    """
    content = bundle.manifest
    total = sum(model.bytes for model in content.models.values())
    unique = sum(tensor.length for tensor in content.tensors.values())
    return {
        "queries": sum(content.models[query.model].bytes for query in content.queries.values()),
        "models": total,
        "unique": unique,
        "saved": total - unique,
        "file": bundle.file(content.blob).stat().st_blocks * 512,
    }


def bundle_tables(bundle: Bundle, figures: Mapping[str, Any]) -> Iterator[Table | str]:
    """For people, what :func:`describe` found."""
    models = Table(title=f"{bundle.path}", title_justify="left", box=SIMPLE)
    for column in ("model", "queries", "program", "mode", "precision"):
        models.add_column(column)
    for column in ("MB", "shared MB"):
        models.add_column(column, justify="right")
    for name, model in figures["models"].items():
        models.add_row(
            name,
            ", ".join(model["queries"]),
            model["program"][:12],
            model["mode"],
            model["precision"],
            _mb(model["bytes"]),
            _mb(model["shared_bytes"]),
        )
    yield models
    segments = Table(title="segments", title_justify="left", box=SIMPLE)
    for column in ("segment", "used by"):
        segments.add_column(column)
    for column in ("tensors", "MB"):
        segments.add_column(column, justify="right")
    for name, segment in bundle.manifest.segments.items():
        segments.add_row(name, ", ".join(segment.models), str(len(segment.tensors)), _mb(segment.length))
    yield segments
    if figures["packings"]:
        yield _packed(figures["packings"])
    for engines in figures["engines"]:
        yield _built(engines)
    if "merge" in figures:
        yield _merged(figures["merge"])
    held = figures["bytes"]
    yield (
        f"{figures['programs']} programs, {figures['tensors']} tensors; weights: {_mb(held['queries'])} MB as one"
        f" session a query, {_mb(held['models'])} MB as one a model, {_mb(held['unique'])} MB here"
    )


def _packed(found: Mapping[str, Any]) -> Table:
    table = Table(title="int8 on this CPU, where there is memory for all", title_justify="left", box=SIMPLE)
    for column in ("model", "mode"):
        table.add_column(column)
    for column in ("bound, ms", "packed, ms", "private MB if packed"):
        table.add_column(column, justify="right")
    for name, packing in found.items():
        times = (f"{packing[each]:.2f}" for each in ("bound_ms", "packed_ms"))
        table.add_row(name, "packed" if packing["packed"] else "bound", *times, _mb(packing["bytes"]))
    return table


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


def _built(engines: dict[str, Any]) -> Table:
    table = Table(title=f"engines: {escape(engines['title'])}", title_justify="left", box=SIMPLE)
    for column in ("program", "models", "mode"):
        table.add_column(column)
    for column in ("weights as inputs", "layers", "MB"):
        table.add_column(column, justify="right")
    table.add_column("measured")
    for program, engine in engines["programs"].items():
        numbers = str(engine["inputs"]), str(engine["layers"]), _mb(engine["bytes"])
        measured = escape(str(ModeChoice.model_validate(engine)))
        table.add_row(program[:12], ", ".join(engine["models"]), engine["mode"], *numbers, measured)
    for program, left in engines["refused"].items():
        table.add_row(program[:12], ", ".join(left["models"]), "on the CPU")
    return table


def _merged(merge: dict[str, Any]) -> Table:
    sizes = f"{_mb(merge['original_bytes'])} MB to {_mb(merge['merged_bytes'])} MB, {merge['saving']:.1%} saved"
    table = Table(title=f"merged: {sizes}", title_justify="left", box=SIMPLE)
    table.add_column("query")
    for column in ("original", "reached", "relative", "target"):
        table.add_column(column, justify="right")
    for query, found in merge["queries"].items():
        table.add_row(escape(query), *(f"{found[name]:.1%}" for name in ("original", "reached", "relative", "target")))
    return table


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
