"""Tables of a bundle's contents that ``gemel inspect`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ...bundles.addresses import shown_server
from ...bundles.goals import QueryGoals
from ...bundles.reader import Bundle
from ...runtime.engines.record import ModeChoice
from .input_words import describe_input

__all__ = ["bundle_tables", "shown_source"]


def bundle_tables(bundle: Bundle, figures: Mapping[str, Any]) -> Iterator[Table | str]:
    """Yield tables of a bundle's queries, models, segments and engines, and at the end a line with the totals.

    Args:
        bundle: open bundle, from which the segments are listed.
        figures: result of :func:`.inspect.describe` for this bundle.
    """
    yield _queries(figures["queries"], figures["feeds"])
    for name, model in figures["models"].items():
        yield f"input of {escape(name)}: {escape(describe_input(model['input']))}"
    yield _models(bundle, figures["models"])
    for stem in figures["stems"].values():
        yield f"stem: {', '.join(stem['models'])} begin with the same layers, of {_mb(stem['bytes'])} MB"
    yield _segments(bundle)
    if figures["forms"]:
        yield _forms(figures["forms"])
    if figures["packings"]:
        yield _private_copies(figures["packings"])
    for model in dict.fromkeys(each["model"] for each in figures["bf16"].values()):
        yield escape(_bf16(model, figures["bf16"]))
    for engines in figures["engines"]:
        yield _engines(engines)
    if "merge" in figures:
        yield _merge(figures["merge"])
    if figures["originals"] is not None:
        yield from _originals(figures["originals"], figures["bytes"]["unique"])
    held, device = figures["bytes"], figures["device"]
    memory = device["memory"] if isinstance(device["memory"], str) else f"{device['memory'] / 1e6:.2f} MB"
    yield (
        f"device: {device['backend']}, memory {memory} (at least {_mb(device['least_bytes'])} MB), SLA"
        f" {device['sla_ms']:g} ms, objective {device['objective']}"
    )
    yield (
        f"{figures['programs']} programs, {figures['tensors']} tensors; weights: {_mb(held['queries'])} MB as one"
        f" session per query, {_mb(held['models'])} MB as one per model, {_mb(held['unique'])} MB in this bundle"
    )


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """Return an empty table with a title: columns for words, then right-aligned columns for numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _queries(queries: Mapping[str, Any], feeds: Mapping[str, Any]) -> Table:
    goals = {name: _goals(query) for name, query in queries.items()}
    columns = ("query", "feed", "source", "task", "model", "labels", "threshold")
    table = _table("queries", (*columns, "goals") if any(goals.values()) else columns, ())
    for name, query in queries.items():
        feed = feeds[query["feed"]]
        fps = "" if feed["fps"] is None else f", {feed['fps']:g} fps"
        threshold = "" if query["threshold"] is None else f"{query['threshold']:g}"
        source = f"{shown_source(feed['source'])}{fps}"
        cells = (name, query["feed"], escape(source), query["task"], query["model"], escape(_labels(query)), threshold)
        table.add_row(*cells, *([goals[name]] if any(goals.values()) else []))
    return table


def _goals(query: Mapping[str, Any]) -> str:
    """Return what was asked for a query beyond the defaults, such as ``at least 5 fps, weight 2``; empty if nothing."""
    texts = {
        "sla_ms": "SLA {:g} ms",
        "min_fps": "at least {:g} fps",
        "weight": "weight {:g}",
        "priority": "priority {}",
    }
    usual = QueryGoals().model_dump()
    goals = [text.format(query[name]) for name, text in texts.items() if query[name] != usual[name]]
    if (staleness := query["staleness"]) is not None:
        seconds = len(staleness["curve"]) / staleness["fps"]
        goals.append(f"answers {staleness['curve'][-1]:.1%} accurate after {seconds:.3g} s")
    return ", ".join(goals)


def _labels(query: Mapping[str, Any]) -> str:
    """Return the first three labels of a query, the number of its labels, and the classes that it reports if not
    all."""
    if query["task"] in ("embedding", "raw"):
        return ""
    labels = query["labels"] or ()
    more = f", ... ({len(labels)})" if len(labels) > 3 else ""
    words = ", ".join(labels[:3]) + more if labels else "numbers"
    return words if query.get("classes") is None else f"{words}; only {', '.join(query['classes'])}"


def shown_source(source: str) -> str:
    """Return a feed's source without the name and password that the address of a camera may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "***@", source)


def _models(bundle: Bundle, models: Mapping[str, Any]) -> Table:
    table = _table(str(bundle.path), ("model", "queries", "program", "mode", "precision"), ("MB", "shared MB"))
    for name, model in models.items():
        table.add_row(
            name,
            ", ".join(model["queries"]),
            model["program"][:12],
            model["mode"],
            model["precision"],
            _mb(model["bytes"]),
            _mb(model["shared_bytes"]),
        )
    return table


def _segments(bundle: Bundle) -> Table:
    table = _table("segments", ("segment", "used by"), ("tensors", "MB"))
    for name, segment in bundle.manifest.segments.items():
        table.add_row(name, ", ".join(segment.models), str(len(segment.tensors)), _mb(segment.length))
    return table


def _forms(forms: Mapping[str, Any]) -> Table:
    table = _table("forms of weights", ("form",), ("weights", "MB in memory", "MB in the bundle"))
    for form, sizes in forms.items():
        table.add_row(form, str(sizes["weights"]), _mb(sizes["memory_bytes"]), _mb(sizes["bytes"]))
    return table


def _private_copies(measured: Mapping[str, Any]) -> Table:
    title = "int8 on this CPU, if the memory budget holds all weights"
    numbers = ("bound, ms", "private copy, ms", "private copy, MB")
    table = _table(title, ("model", "mode"), numbers)
    for name, copy in measured.items():
        times = (f"{copy[key]:.2f}" for key in ("bound_ms", "packed_ms"))
        table.add_row(name, "private copy" if copy["packed"] else "bound", *times, _mb(copy["bytes"]))
    return table


def _engines(engines: Mapping[str, Any]) -> Table:
    title = f"engines: {escape(engines['title'])}"
    table = _table(title, ("program", "models", "mode"), ("weights as inputs", "layers", "MB"))
    table.add_column("measured")
    for program, engine in engines["programs"].items():
        numbers = str(engine["inputs"]), str(engine["layers"]), _mb(engine["bytes"])
        measured = escape(str(ModeChoice.model_validate(engine)))
        table.add_row(program[:12], ", ".join(engine["models"]), engine["mode"], *numbers, measured)
    for program, refused in engines["refused"].items():
        table.add_row(program[:12], ", ".join(refused["models"]), "on the CPU")
    return table


def _merge(merge: Mapping[str, Any]) -> Table:
    sizes = f"{_mb(merge['original_bytes'])} MB to {_mb(merge['merged_bytes'])} MB, {merge['saving']:.1%} saved"
    columns = ("original", "reached", "relative", "target")
    table = _table(f"merged: {sizes}", ("query",), columns)
    for query, accuracies in merge["queries"].items():
        name = f"{escape(query)}, reverted" if accuracies["reverted"] else escape(query)
        table.add_row(name, *(f"{accuracies[column]:.1%}" for column in columns))
    return table


def _originals(originals: Mapping[str, Any], unique: int) -> Iterator[Table | str]:
    """Yield what a bundle knows of original weights, and what a revert of each query takes.

    Args:
        originals: result of :func:`.original_figures.original_figures`.
        unique: bytes of the weights that run now.
    """
    if not originals["models"]:
        at = shown_server(originals["at"]) if "://" in originals["at"] else originals["at"]
        yield f"original weights: at {escape(at)}; gemel revert fetches them"
        return
    title = f"original weights: {_mb(originals['bytes'])} MB wait in the bundle and are not loaded"
    numbers = ("MB in memory then", "more, MB", "at least, MB")
    table = _table(title, ("model", "queries", "state", "next"), numbers)
    for name, model in originals["models"].items():
        state, command = ("reverted", "--undo") if model["reverted"] else ("merged", "revert")
        sizes = (model["unique_bytes"], model["unique_bytes"] - unique, model["least_bytes"])
        table.add_row(name, ", ".join(model["queries"]), state, command, *map(_mb, sizes))
    yield table


def _bf16(model: str, queries: Mapping[str, Any]) -> str:
    """Return a line about the accuracy of a model in bf16, relative to float32 on this CPU."""
    own = {name: each for name, each in queries.items() if each["model"] == model}
    words = []
    for name, each in own.items():
        agreed = "nothing to judge by" if each["agreement"] is None else f"agreement {each['agreement']:.4f}"
        words.append(f"{name} {agreed} on {each['frames']} frames, target {each['target']:g}")
    allowed = "accepted" if next(iter(own.values()))["accepted"] else "refused"
    return f"bf16 of {model} in auto-cpu: {allowed}; {'; '.join(words)}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"
