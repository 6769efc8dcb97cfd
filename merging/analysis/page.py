"""HTML page of ``gemel analyze``: a workload's memory, without scripts, fonts or anything else to fetch."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .analysis import Analysis, share_of_heaviest
from .charts import ROWS, groups_chart, layers_chart, matrix_chart, models_chart

__all__ = ["render"]

_CHARTS = {"models": models_chart, "layers": layers_chart, "matrix": matrix_chart, "groups": groups_chart}


def render(analysis: Analysis, title: str) -> str:
    """Return the HTML page of an analysis of a workload's memory, to be written as UTF-8.

    Args:
        analysis: an analysis of at least one model.
        title: title of the page, such as the path of the analysed workload.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["mb"] = _mb
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        analysis=analysis,
        title=title,
        models=sorted(analysis.models, key=lambda model: -model.bytes),
        queries=sum(len(model.queries) for model in analysis.models),
        rows=ROWS,
        heaviest=share_of_heaviest,
        picture=lambda name: Markup(f'<div class="picture {name}">{_CHARTS[name](analysis)}</div>'),
    )


def _mb(size: int) -> str:
    """Return a number of bytes as text in megabytes: with one decimal, or two significant digits below 1 MB."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.2g}"
