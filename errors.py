"""Exceptions that gemel raises, as one class tree.

Every error that a user can cause is a :class:`GemelError`. Its message names the file or field, the value found and
what is allowed. The commands print the message as one line and exit with ``exit_code``.

::

    GemelError
    ├── InputError                the user's files, flags or environment (exit 2)
    │   ├── WorkloadError         workload.yaml: syntax, fields, values
    │   ├── DataError             images or labels that a query cannot be retrained or judged on
    │   │   └── UnjudgedError     images that can be read but show too little to judge by
    │   ├── CalibrationError      frames or ranges that a model cannot be quantized with
    │   ├── ModelError            a factory, a state dict or an ONNX file that does not fit
    │   │   └── RetrainError      a model that can be run but not retrained
    │   ├── FeedError             a video, folder or camera that cannot be read
    │   ├── BundleError           a bundle that is missing, damaged, unsafe or too new
    │   └── MissingExtraError     an optional part of gemel that is not installed
    ├── CompileError              a model that cannot be exported or a pass that failed (exit 1)
    │   └── SharingLostError      layers that were equal before compilation and are not after it
    └── BackendError              a program that a device refuses or fails to run (exit 1)
"""

from __future__ import annotations

import re

__all__ = [
    "BackendError",
    "BundleError",
    "CalibrationError",
    "CompileError",
    "DataError",
    "FeedError",
    "GemelError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "RetrainError",
    "SharingLostError",
    "UnjudgedError",
    "WorkloadError",
    "first_line",
    "install_hint",
    "one_line",
]

_LONGEST_WORD = 300
"""Maximum number of characters of a word in a message; the paths of real files are shorter."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type, for use in a one-line message.

    Some libraries raise errors whose message is a page long.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def install_hint(extra: str) -> str:
    """Return the command that installs an extra of gemel, for an error message.

    The command needs a checkout, because gemel is on no package index.
    """
    return f"in a checkout of gemel, pip install '.[{extra}]'"


def one_line(text: str) -> str:
    """Return a text as one line that a terminal can show: without control characters and without endless words.

    Messages quote names and values from files that others wrote.

    >>> one_line("a\\nb\\x1b[31m"), len(one_line("x" * 5000))
    ('a b\\\\x1b[31m', 303)
    """
    words = " ".join(text.split())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
    return re.sub(rf"(\S{{{_LONGEST_WORD}}})\S+", r"\1...", shown)


class GemelError(Exception):
    """Base class of all errors that gemel raises on purpose. The message is made one line.

    Args:
        message: which file or field is wrong, the value found, and what is allowed.
    """

    exit_code = 1
    """Exit status of a command that ends with an error of this class."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class InputError(GemelError):
    """Error about input of the user that is missing, malformed or not allowed."""

    exit_code = 2


class WorkloadError(InputError):
    """Error about a workload file that cannot be used; the message names file, line and field."""


class DataError(InputError):
    """Error about a query's images or labels that are missing or do not fit the query's model."""


class UnjudgedError(DataError):
    """Error about images that can be read, but show too little to judge a query by. Merging leaves its model alone."""


class CalibrationError(InputError):
    """Error about calibration frames or ranges that do not fit the model to convert to int8 or fp16."""


class ModelError(InputError):
    """Error about a model that cannot be built from its description in the workload."""


class RetrainError(ModelError):
    """Error about a model that can be compiled and run but not retrained; merging leaves the model unchanged."""


class FeedError(InputError):
    """Error about a feed that cannot be opened or read."""


class BundleError(InputError):
    """Error about a bundle that is missing, damaged, unsafe or of a newer major version."""


class MissingExtraError(InputError):
    """Error about a feature of gemel that needs packages that are not installed.

    Args:
        what: name of the feature that needs the packages.
        extra: name of the extra of the package ``gemel`` that installs them.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed: {install_hint(extra)}")


class CompileError(GemelError):
    """Error about a model that cannot be compiled."""


class SharingLostError(CompileError):
    """Error about tensors that are equal in the source models but would differ in the bundle."""


class BackendError(GemelError):
    """Error about a program that a device or its runtime refuses or fails to run."""
