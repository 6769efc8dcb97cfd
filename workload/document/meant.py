"""Parsers and checks of values in workload.yaml, whose error messages suggest what the user probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from ...bundles.budget import parse_memory
from ...bundles.staleness import read_curves
from ...errors import InputError
from ...frames.reference import package_file

__all__ = [
    "check_classes",
    "check_factory",
    "check_normalisation",
    "check_onnx",
    "mistake",
    "near_size",
    "nearest",
    "parse_duration",
    "parse_fraction",
    "parse_labels",
    "parse_memory_key",
    "parse_names",
    "parse_numbers",
    "parse_size",
    "parse_source",
    "parse_staleness",
]

_UNITS_MS = {"ms": 1.0, "s": 1000.0}
_LEAST_MEMORY = 1 << 20
"""Bytes below which a memory budget without a unit is taken for a number of MiB whose unit was forgotten."""
_MOST_LABEL_BYTES = 1 << 20
"""Maximum size in bytes of a file of labels."""


def mistake(message: str, key: str | None = None, *, secret: bool = False) -> PydanticCustomError:
    """Return a Pydantic validation error with a message that is taken literally and not as a template.

    Args:
        message: what is expected, and what was probably meant.
        key: key of the validated mapping that the message is about; None for the validated value itself.
        secret: whether the value may hold a password, so that it must not be printed.
    """
    return PydanticCustomError("mistake", "{message}", {"message": message, "key": key, "secret": secret})


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant by a word: equal but for case, a part of it, or nearly alike.

    >>> nearest("cuda", ["ort-cpu", "ort-cuda"]), nearest("BGR", ["rgb", "bgr"]), nearest("lemon", ["rgb"])
    ('ort-cuda', 'bgr', None)
    """
    word, words = word.lower(), list(known)
    for each in words:
        if word == each.lower():
            return each
    if len(word) >= 3 and (parts := [each for each in words if word in each.lower() or each.lower() in word]):
        return min(parts, key=len)
    close = difflib.get_close_matches(word, words, n=1)
    return close[0] if close else None


def parse_duration(value: Any) -> Any:
    """Parse a duration of a workload, such as ``100ms``, ``0.5s`` or a number of milliseconds, into milliseconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s)\s*", value)
        if not match:
            raise mistake("a duration such as 100ms or 0.5s is expected")
        return float(match[1]) * _UNITS_MS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mistake("a duration such as 100ms or 0.5s is expected")
    if 0 < value < 1:
        raise mistake(f"a bare number is milliseconds; did you mean {value:g}s, which is {value * 1000:g}ms?")
    return value


def near_size(value: int | str) -> str:
    """Return the question whether a size that lacks its last letter, such as ``64M``, was meant; empty for others."""
    unit = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([KMG])(i?)\s*", str(value), re.IGNORECASE)
    return f"; did you mean {unit[1]}{unit[2].upper()}{unit[3]}B?" if unit else ""


def parse_memory_key(value: Any, *, bytes_only: bool = False) -> Any:
    """Parse a memory budget such as ``64MiB`` (:func:`.parse_memory`), and refuse a number that lacks its unit.

    Args:
        value: value of the key.
        bytes_only: whether to refuse a share of all weights, ``min`` and ``all``.
    """
    expected = "bytes such as 64MiB" + (
        " are expected" if bytes_only else ", a share such as 50%, min or all are expected"
    )
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise mistake(expected)
    try:
        parsed = parse_memory(value)
    except ValueError as error:
        raise mistake(f"{expected if bytes_only else error}{near_size(value)}") from error
    if parsed < 1 if isinstance(parsed, int) else bytes_only:
        raise mistake(expected)
    bare = isinstance(value, int) or value.strip().isdigit()
    if bare and isinstance(parsed, int) and parsed < _LEAST_MEMORY:
        raise mistake(f"a bare number is bytes; did you mean {parsed}MiB? ({parsed} bytes are {parsed}B)")
    return parsed


def parse_numbers(value: Any) -> Any:
    """Return a bare number in a workload as a list of one number; any other value stays as it is."""
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def parse_fraction(value: Any) -> Any:
    """Return a fraction in a workload, such as ``1/255``, as a number; any other value stays as it is."""
    match = (
        re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*(\d{1,9}(?:\.\d{1,9})?)\s*", value)
        if isinstance(value, str)
        else None
    )
    return float(match[1]) / float(match[2]) if match and float(match[2]) else value


def parse_size(value: Any) -> Any:
    """Refuse an input size in a workload that is not ``[height, width]``, and suggest what was probably meant."""
    numbers: list[int] | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        numbers = [value, value]
    elif isinstance(value, str) and (match := re.fullmatch(r"\s*(\d{1,5})\s*[xX×*,]\s*(\d{1,5})\s*", value)):  # noqa: RUF001
        # In other programs, 640x480 is 640 pixels wide; a workload has the height first.
        numbers = [int(match[2]), int(match[1])]
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) != 2:
        # An array's shape: channels, and possibly the batch, are not part of the size.
        sides = [side for side in value if isinstance(side, int) and side > 4]
        numbers = sides if len(sides) == 2 else sides * 2 if len(sides) == len(value) == 1 else None
    elif isinstance(value, list | tuple):
        return value
    meant = f"; did you mean {numbers}?" if numbers else ", such as [320, 320]"
    raise mistake(f"[height, width] in pixels is expected{meant}")


def parse_source(value: Any) -> Any:
    """Refuse a bare camera number, or a list, as the source of a feed, and suggest what was probably meant."""
    if (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"\s*\d{1,2}\s*", value)
    ):
        raise mistake(f"did you mean the camera /dev/video{str(value).strip()}?")
    if isinstance(value, list):
        raise mistake("one source is expected; give every camera or file a feed of its own")
    return value


def parse_names(value: Any) -> Any:
    """Return a workload's list of names or numbers as a list of texts; refuse a name without a list around it."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        raise mistake(f"a list is expected: [{value}]")
    if not isinstance(value, list | tuple):
        return value
    return [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value]


def parse_labels(value: Any, root: Path) -> Any:
    """Return a query's labels as a list: as given, or from a text file with one label per line.

    Args:
        value: list of labels, or path of a file of labels.
        root: folder that a relative path starts from.
    """
    if isinstance(value, dict):
        raise mistake(f"a list is expected: [{', '.join(str(name) for name in list(value.values())[:3])}, ...]")
    if not isinstance(value, str):
        return value
    try:
        path = package_file(value) if value.startswith("package:") else root / Path(value).expanduser()
        data = path.read_bytes()[: _MOST_LABEL_BYTES + 1] if path.is_file() else None
    except (InputError, OSError, ValueError) as error:
        raise mistake(f"cannot be read as a file of labels: {getattr(error, 'strerror', None) or error}") from error
    if data is None:
        raise mistake(f"a list is expected, such as [{value}], or a text file with one label per line; no such file")
    try:
        lines = data.decode().rstrip("\r\n").splitlines()
    except UnicodeDecodeError as error:
        raise mistake("a text file with one label per line is expected; it is not UTF-8 text") from error
    if len(data) > _MOST_LABEL_BYTES or "\0" in "".join(lines):
        raise mistake("a text file with one label per line is expected; it is too large, or holds other data")
    if "" in lines:
        raise mistake(f"a text file with one label per line is expected; its line {lines.index('') + 1} is empty")
    # A line of one blank is a label: the alphabet of a text reader has it.
    return [line.strip() or line for line in lines]


def parse_staleness(value: Any, root: Path) -> Any:
    """Return a workload's staleness curves as a mapping: as given, or from a file.

    Args:
        value: mapping of a query's name to its curve, or path of a file of curves.
        root: folder that a relative path starts from.
    """
    if not isinstance(value, str):
        return value
    try:
        return read_curves(package_file(value) if value.startswith("package:") else root / Path(value).expanduser())
    except (InputError, OSError, ValueError) as error:
        raise mistake(f"a file that gemel eval --staleness wrote is expected; {error}") from error


def check_factory(value: str) -> str:
    """Check that a model's factory is written ``module:callable``, and suggest this form for others."""
    if re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value):
        return value
    expected = "module:callable is expected, such as torchvision.models:resnet18"
    if value.endswith(".onnx"):
        raise mistake(f"{expected}; for an ONNX file say onnx: {value}")
    if match := re.fullmatch(r"([\w./-]+)\.py(?::(\w+))?", value):
        name = match[1].removeprefix("./").replace("/", ".")
        raise mistake(f"{expected}; did you mean {name}:{match[2] or 'NAME'}?")
    if match := re.fullmatch(r"(\w+(?:\.\w+)*:\w+(?:\.\w+)*)\(.*\)", value):
        raise mistake(f"{expected}; did you mean {match[1]}, with its arguments in args?")
    if match := re.fullmatch(r"(\w+(?:\.\w+)*)\.(\w+)", value):
        raise mistake(f"{expected}; did you mean {match[1]}:{match[2]}?")
    raise mistake(expected)


def check_onnx(value: str) -> str:
    """Check that a model's key ``onnx`` names neither a factory nor a file of PyTorch weights."""
    if value.endswith((".pt", ".pth", ".th", ".safetensors")):
        raise mistake(
            f"an ONNX file is expected; weights go with a factory: {{factory: module:name, weights: {value}}}"
        )
    if re.fullmatch(r"\w+(\.\w+)+:\w+", value) and not value.endswith(".onnx"):
        raise mistake(f"an ONNX file is expected; did you mean factory: {value}?")
    return value


def check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, scale: float | None) -> None:
    """Refuse a mean and standard deviation of a model's input that cannot be meant for pixels multiplied by ``scale``.

    Args:
        mean: mean of each channel, or one for all channels; None if not given.
        std: standard deviation of each channel, or one for all channels; None if not given.
        scale: factor for pixels from 0 to 255; None if not given, which is 1/255 for most models.
    """
    if mean is None and std is None:
        return
    if std is None or mean is None:
        given, other = ("mean", "std") if std is None else ("std", "mean")
        kept = "[1, 1, 1]" if other == "std" else "[0, 0, 0]"
        raise mistake(
            f"is given without {other}, which would stay the model's own (ImageNet's for most);"
            f" give both, such as {other}: {kept}",
            given,
        )
    # Some scale pixels to -1 to 1 by 2/255, so without a scale a mean up to 2 may be meant.
    highest = 255 * abs(scale) if scale is not None else 1.0
    largest = max(abs(value) for value in mean)
    wrong = ("mean", largest) if largest > (1.01 * highest if scale is not None else 2) else None
    if wrong is None and scale is None and min(map(abs, std)) > 2:
        wrong = ("std", min(std))
    if wrong is not None:
        unit = "1/255, the usual factor" if scale is None else f"{scale:.4g}"
        pixels = f"pixels are then from 0 to {highest:.4g}"
        raise mistake(
            f"{wrong[1]:g} cannot be meant with scale {unit}: {pixels}; did you mean scale: 1.0 with it?", wrong[0]
        )
    if scale is not None and highest > 100 and 0 < largest <= 1 and max(map(abs, std)) < 1:
        pixels = f"pixels are then from 0 to {highest:g}"
        raise mistake(f"{largest:g} cannot be meant with scale {scale:g}: {pixels}; leave scale out (1/255)", "mean")


def check_classes(classes: Sequence[str], labels: Sequence[str]) -> None:
    """Check that every class that a query reports is one of the labels or a class number.

    Raises:
        PydanticCustomError: a class is neither; the message suggests a label. The error is a ValueError.
    """
    for name in classes:
        if not labels and not name.isdecimal():
            raise mistake(f"{name!r} is no class number, and there are no labels; give the query labels", "classes")
        if name not in labels and not name.isdecimal():
            near = nearest(name, labels)
            known = f"did you mean {near!r}?" if near else f"labels: {', '.join(labels[:5])}"
            more = ", ..." if near is None and len(labels) > 5 else ""
            raise mistake(f"{name!r} is not among the labels; {known}{more}", "classes")
