"""Draw the charts for the page of ``gemel analyze``, each as an ``<svg>`` element."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..layers.groups import ratio
from ..layers.layers import Layer
from .analysis import Analysis, ModelSizes, share_of_heaviest
from .svg import BETWEEN, GRID, INK, INSIDE, MUTED, ON, OWN, SURFACE, style, write_svg

__all__ = ["ROWS", "groups_chart", "layers_chart", "matrix_chart", "models_chart"]

ROWS = 20
"""Maximum number of bars in a chart; the tables of the page list the rest."""

_WIDTH = 9.6
"""Width of a figure in inches; the page shows 96 pixels an inch."""
_ROW_HEIGHT = 0.24
"""Height in inches of one row of a chart, which holds one bar or one model."""
_PERCENT = FuncFormatter(lambda value, _: f"{value * 100:g}%")


def models_chart(analysis: Analysis) -> str:
    """Draw a row for each model with a box for each layer, as wide as the layer's bytes.

    The colour of a box says whether the layer could be shared between models, only inside its model, or not at all.
    """
    colors_of = _layer_colors(analysis)
    largest = max(model.bytes for model in analysis.models)
    least = largest / 500
    tips: dict[str, str] = {}
    with style():
        figure = _figure(_WIDTH, 0.9 + _ROW_HEIGHT * len(analysis.models))
        axes = figure.subplots()
        for row, model in enumerate(analysis.models):
            for start, size, color, tip in _boxes(model, colors_of, least):
                # Boxes with a tooltip have a gap behind them. The gap of a thin box is smaller, so as not to hide it.
                gap = min(least, size / 8) if tip else 0
                box = Rectangle((start / 1e6, row - 0.36), (size - gap) / 1e6, 0.72, facecolor=color, linewidth=0)
                if tip:
                    box.set_gid(f"tip{len(tips)}")
                    tips[f"tip{len(tips)}"] = tip
                axes.add_patch(box)
        axes.set(xlim=(0, largest / 1e6), xlabel="MB")
        _rows(axes, [model.name for model in analysis.models])
        return write_svg(figure, "models", tips)


def layers_chart(analysis: Analysis) -> str:
    """Draw the heaviest layers as bars, and as a curve the share of memory that the heaviest layers hold."""
    colors_of = _layer_colors(analysis)
    top = sorted(analysis.layers, key=lambda layer: -layer.bytes)[:ROWS]
    steps = [step / 200 for step in range(201)]
    with style():
        figure, bars, curve = _bars_and_curve(len(top))
        colors = [colors_of[layer.model, layer.name] for layer in top]
        _bars(bars, [f"{layer.model} · {layer.name}" for layer in top], [layer.bytes for layer in top], colors)
        for index, model in enumerate(analysis.models if len(analysis.models) > 1 else ()):
            parts = [share_of_heaviest(model.layers, step) for step in steps]
            curve.plot(steps, parts, color=OWN, linewidth=0.8, label=None if index else "each model")
        parts = [analysis.heaviest(step) for step in steps]
        curve.plot(steps, parts, color=BETWEEN, linewidth=2, label="all layers")
        mark = analysis.heaviest(0.15)
        curve.plot([0.15], [mark], "o", color=BETWEEN, markersize=6)
        curve.annotate(
            f"15% of the layers\nhold {mark:.0%} of the memory",
            (0.15, mark),
            xytext=(0.35, min(mark, 0.55)),
            va="top",
            arrowprops={"arrowstyle": "-", "color": MUTED},
            bbox={"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.85, "pad": 2},
        )
        curve.set(xlim=(0, 1), ylim=(0, 1.02))
        curve.set(xlabel="share of the layers, heaviest first", ylabel="share of their memory")
        curve.xaxis.set_major_formatter(_PERCENT)
        _finish_curve(curve)
        return write_svg(figure, "layers")


def matrix_chart(analysis: Analysis) -> str:
    """Draw a matrix of models; a cell shows the fraction of its row's model that the column's model could share."""
    models = analysis.models
    shared = {**analysis.pairs, **{(second, first): size for (first, second), size in analysis.pairs.items()}}
    names = [_shorten_name(model.name, 30) for model in models]
    # Few models get large cells with numbers in them; with many models, a cell is still as high as a name.
    cell = min(0.42, max(0.2, 6.6 / len(models)))
    side = cell * len(models)
    font = min(9.0, cell * 36)
    # Lower-case letters of wide fonts take up 0.62 of the font's height; names stand at 50 degrees above the columns.
    label = max(map(len, names)) * 0.62 * font / 72 + 0.15
    width, height = side + label * 1.65, side + label * 0.8 + 0.1
    tips: dict[str, str] = {}
    with style():
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((label / width, 0.05 / height, side / width, side / height))
        for row, first in enumerate(models):
            for column, second in enumerate(models):
                box = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, facecolor=GRID, linewidth=0)
                axes.add_patch(box)
                if first is second:
                    continue
                size = shared[first.name, second.name]
                part = ratio(size, first.bytes)
                box.set(facecolor=BETWEEN, alpha=0.04 + 0.96 * part, gid=f"tip{len(tips)}")
                tips[f"tip{len(tips)}"] = f"{first.name} could share {_mb(size)} MB ({part:.0%}) with {second.name}"
                if cell >= 0.24 and size:
                    text = f"{part * 100:.0f}" if part >= 0.005 else "<1"
                    color = ON if part > 0.75 else INK
                    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
        axes.set(xlim=(-0.5, len(models) - 0.5), ylim=(len(models) - 0.5, -0.5))
        axes.set_yticks(range(len(models)), names, fontsize=font)
        axes.set_xticks(range(len(models)), names, fontsize=font, rotation=50, ha="left", rotation_mode="anchor")
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelcolor=INK)
        axes.spines[:].set_visible(False)
        return write_svg(figure, "matrix", tips)


def groups_chart(analysis: Analysis) -> str:
    """Draw the saving of each group of layers as bars, and the total saving, group after group, as curves.

    The bars show savings between models, or savings inside models if models could share nothing with each other.
    """
    between = [group.saving for group in analysis.groups]
    inside = [group.saving_inside for group in analysis.groups]
    sizes, color = (between, BETWEEN) if analysis.potential_bytes else (inside, INSIDE)
    top = [group for group, size in zip(analysis.groups, sizes, strict=True) if size][:ROWS]
    with style():
        figure, bars, curve = _bars_and_curve(len(top))
        names = [f"{_shorten_definition(group.definition)} \u00d7{len(group.layers)}" for group in top]
        _bars(bars, names, sizes, [color] * len(top))
        for label, color, each in (("between models", BETWEEN, between), ("and also inside models", INSIDE, inside)):
            sums = [total / analysis.bytes for total in accumulate(sorted(each, reverse=True), initial=0)]
            curve.plot(range(len(sums)), sums, color=color, linewidth=2, label=f"{label}: {sums[-1]:.1%}")
        curve.set(xlabel="groups shared, largest saving first", ylabel="saving, share of all bytes", xlim=(0, None))
        curve.set_ylim(0, analysis.potential_inside * 1.06)
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish_curve(curve)
        return write_svg(figure, "groups")


def _layer_colors(analysis: Analysis) -> dict[tuple[str, str], str]:
    """Return (model, layer name) -> colour that shows whether and how the layer could be shared."""
    colors_of = {(layer.model, layer.name): OWN for layer in analysis.layers}
    for group in analysis.groups:
        colors_of |= {(layer.model, layer.name): BETWEEN if group.saving else INSIDE for layer in group.layers}
    return colors_of


def _boxes(
    model: ModelSizes, colors_of: Mapping[tuple[str, str], str], least: float
) -> Iterator[tuple[int, int, str, str | None]]:
    """Yield start in bytes, size in bytes, colour and tooltip of every box in the chart row of a model.

    Args:
        model: the model.
        colors_of: (model, layer name) -> colour.
        least: size in bytes below which neighbouring layers of one colour are joined into a box without a tooltip.
    """

    def key(layer: Layer) -> tuple[str, str | None]:
        return colors_of[layer.model, layer.name], None if layer.bytes < least else layer.name

    start = 0
    for (color, name), members in groupby(model.layers, key):
        layers = list(members)
        size = sum(layer.bytes for layer in layers)
        yield start, size, color, f"{name}: {layers[0].definition}, {_mb(size)} MB" if name else None
        start += size
    yield start, model.bytes - start, GRID, None


def _figure(width: float, height: float) -> Figure:
    """Make a figure of ``width`` by ``height`` inches, with a margin for a browser's font, which may be wider."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.05))


def _bars_and_curve(rows: int) -> tuple[Figure, Axes, Axes]:
    """Make a figure with axes for ``rows`` bars on the left and for a curve on the right."""
    figure = _figure(_WIDTH, max(3.2, 0.7 + _ROW_HEIGHT * rows))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    return figure, left, right


def _bars(axes: Axes, names: Sequence[str], sizes: Iterable[int], colors: Sequence[str]) -> None:
    """Draw one horizontal bar for each size, with the megabytes written behind the bar instead of an axis."""
    for row, (size, color) in enumerate(zip(sizes, colors, strict=False)):
        axes.barh(row, size / 1e6, 0.72, color=color)
        axes.annotate(f"{_mb(size)} MB", (size / 1e6, row), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.3)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    _rows(axes, names)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of a chart's rows at the left, the first name on top."""
    axes.set_yticks(range(len(names)), [_shorten_name(name, 46) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _finish_curve(curve: Axes) -> None:
    """Add a percent axis, a grid and a legend to the axes of a curve."""
    curve.yaxis.set_major_formatter(_PERCENT)
    curve.grid()
    curve.legend(loc="lower right")


def _mb(size: int) -> str:
    """Return a number of bytes as text in megabytes, with three significant digits, or more from 100 MB on."""
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def _shorten_definition(definition: str) -> str:
    """Shorten the text that PyTorch prints for a layer to about half its length.

    >>> _shorten_definition("Conv2d(64, 128, kernel_size=(1, 1), stride=(2, 2), bias=False)")
    'Conv2d(64, 128, 1x1, s2x2, no bias)'
    """
    text = re.sub(r"\((\d+(?:, \d+)*)\)(?=[,)])", lambda found: found[1].replace(", ", "x"), definition)
    text = re.sub(r"\b(stride|padding|dilation|groups)=", lambda found: found[1][0], text)
    return re.sub(r"\b(kernel_size|in_features|out_features)=", "", text).replace("bias=False", "no bias")


def _shorten_name(name: str, length: int) -> str:
    """Shorten a long name by leaving out its middle: model names differ at the start, layer names at the end."""
    if len(name) <= length:
        return name
    end = (length - 1) * 3 // 5
    return f"{name[: length - 1 - end]}…{name[-end:]}"
