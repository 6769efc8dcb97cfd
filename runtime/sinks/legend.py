"""Legend that is drawn on a frame: a line for each query, with its colour and its newest result in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..decode.results import Result, Segmentation
from .overlays import class_color
from .pen import LIGHT, PALE, Color, Pen, Rect
from .words import percent, words

__all__ = ["Legend"]

_MOST_HEIGHT, _MOST_WIDTH = 0.45, 0.55
"""Maximum fractions of the frame's height and width that the legend covers."""
_NARROW = 300
"""Width in pixels up to which the legend may grow even if it covers more than its fraction of the frame's width."""
_LEAST_LINES = 5
"""Number of lines that the legend may have even if they cover more than its fraction of a low frame's height."""
_MOST_CLASSES = 8
"""Maximum number of classes of a segmented frame that the legend names, largest first."""


@dataclass(frozen=True)
class _Line:
    """One line of the legend on a frame: a coloured square, a name, and an answer in words."""

    color: Color | None
    """Colour of the square at the line's left end; None for a line without a square."""
    name: str
    answer: str
    indent: bool = False
    """Whether the line is indented, because it names a class in the result of the query above."""


class Legend:
    """Legend at the top left of one frame. If there is no room for all lines, the last line counts the missing ones.

    Args:
        pen: pen that draws on the frame.
        results: newest result by query; None for a query without a result yet.
        colors: colour of each query.
    """

    def __init__(self, pen: Pen, results: Mapping[str, Result | None], colors: Mapping[str, Color]) -> None:
        self._pen = pen
        lines = [line for query, result in results.items() for line in _lines(query, result, colors[query])]
        margin = self._margin = 2 * pen.pad
        most, all_there_is = (int((pen.height * part - margin) / pen.row) for part in (_MOST_HEIGHT, 1))
        most = max(1, most, min(_LEAST_LINES, all_there_is))
        if len(lines) > most:
            lines = [*lines[: most - 1], _Line(None, f"+ {len(lines) - most + 1} more", "")]
        self._lines = lines
        names = max((self._indent(line) + pen.text_width(line.name) for line in lines), default=0)
        answers = max((pen.text_width(line.answer) for line in lines), default=0)
        width = max(pen.width * _MOST_WIDTH, min(pen.width - 2 * margin, _NARROW))
        room = max(0, int(width) - 5 * pen.pad - pen.ascent)
        # Long names leave half of the width to the answers.
        self._names = min(names, max(room - answers, room // 2))
        self._answers = min(answers, room - self._names)

    @property
    def rect(self) -> Rect:
        """Rectangle of the frame that the legend covers; empty if the legend has no lines."""
        if not self._lines:
            return (0, 0, 0, 0)
        pen, margin = self._pen, self._margin
        right = min(pen.width, margin + self._answers_at + self._answers + pen.pad)
        bottom = min(pen.height, margin + len(self._lines) * pen.row + pen.pad)
        return margin, margin, max(right, margin), max(bottom, margin)

    def draw(self) -> None:
        """Draw the legend on the frame, over everything drawn before."""
        pen, (left, top, _, _) = self._pen, self.rect
        pen.shade(self.rect)
        swatch = pen.ascent
        for number, line in enumerate(self._lines):
            x, y = left + pen.pad + self._indent(line), top + pen.pad // 2 + number * pen.row
            if line.color is not None:
                corner = y + (pen.row - swatch) // 2
                pen.fill((x, corner, x + swatch + 1, corner + swatch + 1), line.color)
            name = pen.fit(line.name, self._names - self._indent(line))
            pen.text(name, x + swatch + pen.pad, y, PALE if line.indent else LIGHT)
            pen.text(pen.fit(line.answer, self._answers), left + self._answers_at, y, PALE)

    @property
    def _answers_at(self) -> int:
        """Pixels from the legend's left edge to its second column."""
        return self._pen.ascent + self._names + 4 * self._pen.pad

    def _indent(self, line: _Line) -> int:
        return self._pen.ascent if line.indent else 0


def _lines(query: str, result: Result | None, color: Color) -> list[_Line]:
    """Return the legend's line of a query and, for a segmented frame, a further line for each of its classes."""
    if result is None:
        return [_Line(color, query, "-")]
    if not isinstance(result, Segmentation):
        return [_Line(color, query, words(result))]
    count = len(result.classes)
    largest = sorted(result.classes, key=lambda each: -each.mask.area())[:_MOST_CLASSES]
    return [
        _Line(None, query, f"{count} class{'es' * (count != 1)}"),
        *(_Line(class_color(each), each.label, percent(each.mask), indent=True) for each in largest),
    ]
