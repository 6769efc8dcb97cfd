"""Flags about samples: of ``gemel-run``, which folder, how often, the hook and the store; and since when they count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..bundles.output_specs import OutputSpec, SamplesSpec
    from ..runtime.sinks.sampling import SampleHook

__all__ = ["SampleFlags", "SinceOpt", "period_of", "sampling_of", "since_of"]

SinceOpt = Annotated[
    str | None,
    typer.Option(
        help="Use samples from then on only, by the boxes' clocks: 2026-11-27T12:00:00Z, or 2h before now.",
        metavar="TIME",
    ),
]


@dataclass(frozen=True)
class SampleFlags:
    """Settings of samples that the flags of ``gemel-run`` give."""

    spec: SamplesSpec | None = None
    """Folder of samples in addition to those of the bundle; None without ``--samples``."""
    hook: SampleHook | None = None


def sampling_of(
    outputs: Sequence[OutputSpec], folder: Path | None, every: str | None, hook: str | None, upload: str | None
) -> SampleFlags:
    """Check the flags of ``gemel-run`` about samples, and return what they give.

    Args:
        outputs: outputs of the run without ``--samples``.
        folder: value of ``--samples``.
        every: value of ``--sample-every``.
        hook: value of ``--sample-hook``.
        upload: value of ``--sample-upload``.

    Raises:
        InputError: a value is not allowed, or there are no samples that a flag could be about.
        MissingExtraError: samples are to be uploaded, and fsspec is not installed.
    """
    from ..bundles.output_specs import SamplesSpec
    from ..runtime.sinks.sampling import check_upload, load_hook

    if every is not None and folder is None:
        raise InputError("--sample-every: --samples DIR is needed with it; an output samples has the key every")
    if folder is None and not any(each.samples for each in outputs):
        for flag, value in (("--sample-hook", hook), ("--sample-upload", upload)):
            if value is not None:
                raise InputError(f"{flag}: --samples DIR or an output samples is needed with it")
    if folder is not None and ":/" in str(folder):
        raise InputError("--samples: a folder of this machine is expected; --sample-upload moves samples to a store")
    if upload is not None:
        check_upload(upload)
    spec = None
    if folder is not None:
        spec = SamplesSpec(folder=str(folder), every=30.0 if every is None else period_of("--sample-every", every))
    return SampleFlags(spec, None if hook is None else load_hook(hook))


def period_of(flag: str, text: str) -> float:
    """Return the seconds of a flag such as ``30s``.

    Raises:
        InputError: the text is no period, or not above 0.
    """
    from pydantic_core import PydanticCustomError

    from ..workload.document.output_meant import parse_period

    try:
        seconds = float(parse_period(text))
    except PydanticCustomError as error:
        raise InputError(f"{flag}: {text!r} is not allowed: {error.message()}") from error
    if not 0 < seconds <= 1e9:
        raise InputError(f"{flag}: {text!r} is not allowed: more than 0 is expected")
    return seconds


def since_of(text: str | None) -> float:
    """Return the Unix seconds of the flag ``--since``; minus infinity without one.

    Args:
        text: time in ISO 8601, in UTC unless it has another offset; Unix seconds; or a period before now, with a unit.

    Raises:
        InputError: the text is none of these.
    """
    if text is None:
        return float("-inf")
    value = text.strip()
    if re.fullmatch(r"\d{1,12}(\.\d*)?", value):
        return float(value)
    try:
        # Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", value))
    except ValueError:
        try:
            return time() - period_of("--since", value)
        except InputError as error:
            raise InputError(
                f"--since: {text!r} is not allowed: a time such as 2026-11-27T12:00:00Z, or a period before now such as"
                " 2h, is expected"
            ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
