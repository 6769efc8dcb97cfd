"""Settings of sampling that come with the run and never with a bundle: the user's hook, and where samples go."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...errors import InputError, MissingExtraError, first_line
from ...frames.frame import Image
from ..decode.results import Result

__all__ = ["SampleHook", "Sampling", "check_upload", "load_hook"]

SampleHook = Callable[[Image, Mapping[str, Result]], Image | None]
"""Function of the user that changes a frame before it is stored, for example blurs faces, or refuses it.

It gets a copy of the frame, ``[H, W, 3]`` uint8 BGR, and query -> answer. It returns a frame of the same size, or None
if the frame must not be stored.
"""


@dataclass(frozen=True)
class Sampling:
    """Settings of all outputs ``samples`` of a run that only its user can give."""

    bundle: Callable[[], str] = lambda: ""
    """Function that returns the id of the bundle that answers now; called on the thread that runs models."""
    hook: SampleHook | None = None
    upload: str | None = None
    """Address of a folder in a store that fsspec knows, such as ``s3://bucket/box7``; samples stay on the box if
    None."""


def load_hook(text: str) -> SampleHook:
    """Import the hook that ``module:function`` names.

    Raises:
        InputError: there is no such module or function.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise InputError(f"--sample-hook: {text!r} is not allowed: module:function is expected")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise InputError(f"--sample-hook: {text}: {type(error).__name__}: {first_line(error)}") from error
    if not callable(found):
        raise InputError(f"--sample-hook: {text}: is not a function")
    hook: SampleHook = found
    return hook


def check_upload(address: str) -> None:
    """Check that samples can be sent to an address, as far as that shows without asking the store.

    Raises:
        InputError: the address names no store that fsspec can use here.
        MissingExtraError: fsspec is not installed.
    """
    scheme, separator, rest = address.partition("://")
    if not separator or not rest:
        raise InputError("--sample-upload: an address such as s3://bucket/folder is expected")
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingExtraError("--sample-upload", "pull") from error
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise InputError(f"--sample-upload: {scheme}://: {first_line(error)}") from error
