"""Tables of docs/coverage.md: a row for each model, and in words how many answer as their own libraries do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import no_telemetry  # noqa: F401
import onnxruntime
import torch
from coverage_cases.case import Case

from gemel.check.source.result_match import AnswerMatch

__all__ = ["FRAMES", "Figures", "summary", "table"]

FRAMES = 20
"""Number of frames on which a model's answers are compared with those of its library."""
_WIDTH = 140
"""Characters in a line of the page, except in tables."""
_BESIDE_SOURCE = "†"
"""Mark of a difference that is not judged, because ONNX Runtime's runs of the source file differ as much themselves."""

Figures = Mapping[str, Any]
"""Measured figures of one model: name that ``model_answers.py`` gives a figure -> value."""


def summary(measured: Sequence[tuple[Case, Figures]]) -> str:
    """Return as Markdown how many models compile and answer correctly, with a list of the others and the reasons."""
    refused = [(case, figures) for case, figures in measured if "refused" in figures]
    compiled = [(case, figures) for case, figures in measured if "task" in figures]
    beside = [(case, figures) for case, figures in compiled if "parts" in figures]
    wrong = [(case, case.known or words) for case, figures in compiled if (words := _shortfall(figures)) is not None]
    wrong_beside = [case for case, _ in wrong if case.answers is not None]
    words = (
        f"**{len(measured)} models. {len(compiled)} compile, run and are decoded; {len(refused)} are refused.** Of "
        f"{len(beside)} models whose own library was asked, {len(beside) - len(wrong_beside)} get the same answers: "
        "the same objects, boxes and masks that overlap by at least 0.98, scores within 0.01, equal texts, vectors "
        f"with a cosine of at least 0.999. The other {len(compiled) - len(beside)} were compared only with the file or "
        "module that they come from."
    )
    lines = [fill(words, _WIDTH)]
    if wrong:
        lines += ["", "Not as their library or their source:", ""]
        lines += [_item(f"{case.name}: {reason}.") for case, reason in wrong]
    if refused:
        lines += ["", "Refused, with these words:", ""]
        lines += [_item(f"{case.name}: {figures['refused'].removeprefix('query a: ')}.") for case, figures in refused]
    return "\n".join(lines)


def _item(words: str) -> str:
    return fill(words, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _shortfall(figures: Figures) -> str | None:
    """Return the reason why the answers of a compiled model count as wrong; None if they are correct."""
    if figures.get("different") is not None:
        return str(figures["different"])
    if figures["passed"] is False:
        return f"outputs differ from the source by {figures['difference']:.1e} of the largest"
    if figures.get("parts") == 0:
        return "found nothing on the frames, so no answers were compared"
    return None


def table(measured: Sequence[tuple[Case, Figures]]) -> str:
    """Return a Markdown table of models that compile, with ``-`` for what was not measured."""
    lines = [
        f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__.partition('+')[0]}.",
        "",
        "| model | from | task | MB | mode | difference | answers | CPU time | shared with | int8 |",
        "|---|---|---|--:|---|--:|---|--:|---|---|",
    ]
    lines += [_row(case, figures) for case, figures in measured if "refused" not in figures]
    return "\n".join(lines)


def _row(case: Case, figures: Figures) -> str:
    cells = [
        case.name,
        case.origin + ("" if case.trained else " (random)"),
        *(_compiled_words(case, figures) if "task" in figures else ["-"] * 5),
        f"{figures['ratio']:.3f}" if "ratio" in figures else "-",
        _shared_words(case, figures),
        _int8_words(figures),
    ]
    return f"| {' | '.join(cells)} |"


def _compiled_words(case: Case, figures: Figures) -> list[str]:
    return [
        figures["task"],
        f"{figures['megabytes']:.1f}",
        figures["mode"],
        f"{figures['difference']:.1e}{_BESIDE_SOURCE if figures['passed'] is None else ''}",
        _answers_words(case, figures),
    ]


def _answers_words(case: Case, figures: Figures) -> str:
    if "parts" not in figures:
        return f"with its source: {figures['source'] or 'outputs only'}"
    if figures["different"] is not None:
        return f"**{case.library}: {figures['different']}**"
    match = AnswerMatch(FRAMES, figures["parts"], figures["overlap"], figures["score"], None, figures["kind"])
    return f"{case.library}: {match}"


def _shared_words(case: Case, figures: Figures) -> str:
    if "shared" not in figures:
        return "-"
    nearly = f"; {figures['nearly_mb']:.1f} MB but for rounding" if figures.get("nearly_mb") else ""
    return f"{case.sibling_words}: {figures['shared']:.0%} of {figures['sibling_mb']:.1f} MB{nearly}"


def _int8_words(figures: Figures) -> str:
    if "agreement" in figures:
        return f"{figures['agreement']:.1%} of fp32, {figures['kept']} layers fp32, bytes x {figures['bytes']:.2f}"
    return str(figures.get("int8", "-"))
