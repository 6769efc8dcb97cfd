"""Tables and lines about weights of few bits: differences of fine-tunes, accuracies kept, parts of a saving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..bundles.merge_report import MergeReport
    from ..merging.analysis.difference_table import DifferenceCosts
    from ..merging.search.measure_forms import KeptAccuracy

__all__ = ["accuracies_table", "describe_parts", "differences_table"]

_ROWS = 20
"""Maximum number of layers that the table of differences lists one by one, heaviest first."""


def differences_table(found: DifferenceCosts) -> Table:
    """Return the table of what differences to a base cost: size and relative error per layer and number of bits."""
    bits = tuple(found.rows[0].bytes) if found.rows else ()
    table = Table(
        title="differences: kB of all models' codes, and error relative to the weights",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("layer")
    for column in ("models", "kB plain", "base alone", *(f"{each} bit" for each in bits[1:]), "low rank, as 2 bit"):
        table.add_column(column, justify="right")
    rows = sorted(found.rows, key=lambda row: -row.plain)
    for row in rows[:_ROWS]:
        cells = [f"{_kb(row.bytes[each])} {row.errors[each]:.1%}" for each in bits[1:]]
        table.add_row(
            escape(row.layer),
            str(row.members),
            _kb(row.plain),
            f"{row.errors[0]:.1%}",
            *cells,
            f"{_kb(row.bytes[2])} {row.low_rank:.1%}",
        )
    if more := rows[_ROWS:]:
        sizes = (_kb(sum(row.bytes[each] for row in more)) for each in bits[1:])
        table.add_row(f"{len(more)} more", "", _kb(sum(row.plain for row in more)), "", *sizes, "")
    savings = (f"{found.saving(each):.1%}" for each in bits)
    table.add_row("saved, base included", "", "", *savings, "")
    return table


def accuracies_table(kept: Sequence[KeptAccuracy]) -> Table:
    """Return the table of accuracies that queries keep without training, relative to their original models."""
    table = Table(title="accuracy kept without training", title_justify="left", box=SIMPLE)
    for column in ("weights", "bits", "saved", "query"):
        table.add_column(column)
    table.add_column("kept", justify="right")
    for each in kept:
        for query, relative in each.relative.items():
            table.add_row(each.kind, str(each.bits), f"{each.saving:.1%}", escape(query), f"{relative:.3f}")
    return table


def describe_parts(report: MergeReport) -> list[str]:
    """Return lines that say which part of a saving is sharing, which is compression, and what either alone gives."""
    parts = report.parts
    if parts is None:
        return []
    lines = [
        f"of the bytes of convolutions and linear layers: {parts.sharing:.1%} by sharing, {parts.compression:.1%} by"
        f" compression; sharing alone {parts.sharing_alone:.1%}, compression alone"
        f" {'not measured' if parts.compression_alone is None else f'at least {parts.compression_alone:.1%}'}"
    ]
    if parts.compression_alone is not None and parts.compression_alone > report.layer_saving:
        lines.append("compression alone saves more than this merge: try --compress, or gemel-compile --precision int8")
    return lines


def _kb(size: int) -> str:
    return f"{size / 1e3:.1f}"
