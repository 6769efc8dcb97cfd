"""Command ``gemel apply``: make a new bundle of an old one and a delta."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import open_console, write_json
from .options import BundleArg, DebugOpt, JsonOpt
from .remote import HostOpt, TokenOpt, reload_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..bundles.apply_delta import AppliedDelta

__all__ = ["KeyOpt", "ReloadPortOpt", "applied_figures", "applied_lines", "apply_command", "step_aside"]

KeyOpt = Annotated[
    Path | None,
    typer.Option(help="PEM file with the public ed25519 key that must have signed the delta.", metavar="KEY.PEM"),
]
ReloadPortOpt = Annotated[
    int | None,
    typer.Option(
        "--port",
        help="Have the gemel-run with this --metrics-port go on with the new bundle.",
        metavar="PORT",
        min=1,
        max=65535,
    ),
]


def apply_command(
    delta: Annotated[Path, typer.Argument(help="File that gemel diff wrote.", metavar="DELTA")],
    bundle: BundleArg,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the new bundle. Default: that of the old one.", metavar="DIR"),
    ] = None,
    key: KeyOpt = None,
    port: ReloadPortOpt = None,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Turn a bundle into the one that a delta makes, in one step, also while the bundle runs.

    Reverted queries keep their original weights.

    [dim]gemel apply step.delta bundle/ --port 9464[/dim]
    """
    step_aside()
    from ..bundles.apply_delta import apply_delta
    from ..bundles.signature import read_public_key

    done = apply_delta(delta, bundle, output, key=None if key is None else read_public_key(key))
    console = open_console()
    for line in applied_lines(done):
        console.print(line, soft_wrap=True, markup=False)
    write_json(json_file, applied_figures(done))
    if port is not None:
        reload_command(port, done.bundle.path, host, token_file)
    else:
        console.print(f"Next: gemel reload {done.bundle.path} --port PORT", soft_wrap=True, markup=False)


def step_aside() -> None:
    """Give this process the lowest priority, so that a run on the same box misses no frames.

    Importing alone takes a second of a slow core.
    """
    with contextlib.suppress(OSError):
        os.nice(19)


def applied_lines(done: AppliedDelta) -> Iterator[str]:
    """Yield lines about a delta that was applied."""
    from ..bundles.keep_reverts import reverted_queries

    new, kept = done.new_bytes / 1e6, done.kept_bytes / 1e6
    yield (
        f"{done.bundle.path}: bundle {done.before[:12]} is now {done.bundle.id[:12]};"
        f" {new:.2f} MB of weights came in a delta of {done.bytes / 1e6:.2f} MB, {kept:.2f} MB were kept"
    )
    for query in reverted_queries(done.bundle):
        undo = f"gemel revert {done.bundle.path} {query} --undo"
        yield f"{query} still has its original weights; {undo} goes on to the merged ones"


def applied_figures(done: AppliedDelta) -> dict[str, Any]:
    """Return JSON fields about a delta that was applied."""
    from ..bundles.keep_reverts import reverted_queries

    return {
        "bundle": str(done.bundle.path),
        "before": done.before,
        "after": done.bundle.id,
        "reverted": list(reverted_queries(done.bundle)),
        "bytes": done.bytes,
        "new_bytes": done.new_bytes,
        "kept_bytes": done.kept_bytes,
    }
