"""Recognition of text recognisers, whose output is scores of characters along a line, to be decoded as CTC."""

from __future__ import annotations

from collections.abc import Sequence

from ...bundles.decode_specs import OcrDecode
from ...errors import ModelError
from .evidence import Evidence, Recognised, sum_to_one

__all__ = ["recognise_text"]

_PADDLE_INPUT = {
    "color": "bgr",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "fit": "letterbox",
    "pad": 0.0,
    "rounding": "up",
}
"""Input settings of PaddleOCR's recognisers: pixels from -1 to 1, the frame at the left, filled up with 0."""


def recognise_text(found: Evidence) -> Recognised | None:
    """Recognise a text recogniser by scores ``[N, T, C]`` or ``[T, N, C]`` of C characters at T steps along the line.

    Class 0 is the blank.

    Raises:
        ModelError: the characters are not known, or their number does not fit the output.
    """
    for output in found.of_rank(3):
        if 1 not in output.shape[:2]:
            continue
        layout = "NTC" if output.shape[0] == 1 else "TNC"
        classes = output.shape[2]
        charset = _charset(found, classes)
        decode = OcrDecode(
            output=output.name,
            charset=charset,
            layout=layout,
            activation="none" if sum_to_one(output.values) else "softmax",
        )
        # Only PaddleOCR's models know a space that their list of characters does not name.
        paddle = found.metadata.characters is not None or len(charset) == len(found.labels or charset) + 2
        return Recognised(decode, _PADDLE_INPUT if paddle else {})
    return None


def _charset(found: Evidence, classes: int) -> tuple[str, ...]:
    """Return the character of each class of a text recogniser.

    A blank is put first if it is missing and, if there is still one class more than characters, a space last.

    Raises:
        ModelError: the characters are not known, or their number does not fit the number of classes.
    """
    known: Sequence[str] | None = found.labels if found.labels is not None else found.metadata.characters
    if known is None:
        raise ModelError(
            f"{found.where}: the file does not name its {classes - 1} characters; give labels: FILE, a text file with"
            " one character per line in the order of the model's classes"
        )
    charset = {
        0: tuple(known),
        1: ("", *known),
        2: ("", *known, " "),
    }.get(classes - len(known))
    if charset is None:
        raise ModelError(
            f"{found.where}: {len(known)} characters are given; the model has {classes} classes, one of them the blank"
        )
    return charset
