"""Write matplotlib figures as SVG for an HTML page: text is SVG text, and colours are the page's CSS variables."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["BETWEEN", "GRID", "INK", "INSIDE", "MUTED", "ON", "OWN", "SURFACE", "style", "write_svg"]

# matplotlib needs colour values, and the page needs CSS variables: write_svg replaces these values by the variables.
INK, MUTED, GRID, SURFACE, BETWEEN, INSIDE, OWN, ON = (f"#01020{digit}" for digit in range(1, 9))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    SURFACE: "--surface",
    BETWEEN: "--between",
    INSIDE: "--inside",
    OWN: "--own",
    ON: "--on",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gemel",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of the page of ``gemel analyze`` to figures that are made and written inside a ``with`` block."""
    with matplotlib.rc_context(_STYLE):
        yield


def write_svg(figure: Figure, name: str, tips: Mapping[str, str] | None = None) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: a figure that was made under :func:`style`.
        name: name of the picture; all ids of the element begin with this name, because a page has several pictures.
        tips: gid of a drawn object -> text that the browser shows when the pointer is on the object.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    tip = re.compile(r'<g id="(tip\d+)">')
    text = tip.sub(lambda found: f"{found[0]}<title>{escape((tips or {})[found[1]])}</title>", text)
    text = re.sub(r'(<[^<>]*?\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
