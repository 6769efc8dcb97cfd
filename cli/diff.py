"""Command ``gemel diff``: write a delta, which turns one bundle into another one."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..console import open_console, write_json
from ..errors import InputError
from .file_kinds import require_bundle
from .options import BundleArg, DebugOpt, JsonOpt

__all__ = ["diff_command"]


class _Changes(str, Enum):
    """Ways in which retrained weights are sent."""

    exact = "exact"
    rounded = "8bit"


def diff_command(
    old: BundleArg,
    new: Annotated[
        Path, typer.Argument(help="Folder of the bundle to make of it.", metavar="NEW", callback=require_bundle)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="File to write, or folder, where it gets the name that gemel pull looks for.",
            metavar="PATH",
        ),
    ],
    changes: Annotated[
        _Changes,
        typer.Option(
            help="How retrained weights are sent: exact, or 8bit, which rounds them and so makes another bundle."
        ),
    ] = _Changes.exact,
    output_bundle: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the bundle that the delta makes; needed for 8bit, whose accuracy must be measured on it.",
            metavar="DIR",
        ),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="PEM file with the private ed25519 key to sign with.", metavar="KEY.PEM")
    ] = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Write a delta: what a box with one bundle lacks of another one, compressed.

    [dim]gemel diff bundle/ new-bundle/ -o step.delta[/dim]
    """
    if (changes is _Changes.rounded) != (output_bundle is not None):
        raise InputError("--changes 8bit and --output-bundle DIR go together: accuracy is measured on that bundle")
    from ..bundles.reader import open_bundle
    from ..bundles.rounded_bundle import write_rounded
    from ..bundles.write_delta import write_delta

    before, after, rounded = open_bundle(old), open_bundle(new), None
    if output_bundle is not None:
        if output_bundle.resolve() in (old.resolve(), new.resolve()):
            raise InputError(f"--output-bundle: {output_bundle} is one of the two bundles")
        rounded = write_rounded(before, after, output_bundle)
        after = rounded.bundle
    done = write_delta(before, after, output, rounded=rounded, key=sign)
    console = open_console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    say(f"{done.path}: {done.bytes / 1e6:.2f} MB, from bundle {done.base[:12]} to {done.makes[:12]}")
    say(f"new: {done.tensors} tensors of {done.tensor_bytes / 1e6:.2f} MB; kept: {done.kept_bytes / 1e6:.2f} MB")
    if rounded is not None:
        say(f"rounded: {done.forms.get('steps', 0) / 1e6:.2f} MB of them")
    write_json(json_file, {**asdict(done), "path": str(done.path)})
    if output_bundle is not None:
        say(f"Next: gemel eval {output_bundle}")
    else:
        say(f"Next: gemel apply {done.path} BUNDLE")
