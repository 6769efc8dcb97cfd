"""Command ``gemel pull``: fetch deltas from a folder or server, and apply them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import open_console, write_json
from .apply import KeyOpt, ReloadPortOpt, applied_figures, applied_lines, step_aside
from .options import BundleArg, DebugOpt, JsonOpt
from .remote import HostOpt, TokenOpt, reload_command

if TYPE_CHECKING:
    from ..bundles.apply_delta import AppliedDelta

__all__ = ["pull_command"]


def pull_command(
    source: Annotated[
        str, typer.Argument(help="Delta, or folder of deltas: a path, http(s)://... or s3://...", metavar="URL|DIR")
    ],
    bundle: BundleArg,
    key: KeyOpt = None,
    port: ReloadPortOpt = None,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Fetch the deltas that lead on from a bundle and apply them; a fetch that breaks off goes on at the next call.

    Reverted queries keep their original weights.

    [dim]gemel pull https://example.org/deltas bundle/ --port 9464[/dim]
    """
    step_aside()
    from ..bundles.delta_store import DeltaStore
    from ..bundles.pull_deltas import pull_deltas
    from ..bundles.signature import read_public_key

    console, steps = open_console(), list[dict[str, Any]]()

    def applied(done: AppliedDelta) -> None:
        for line in applied_lines(done):
            console.print(line, soft_wrap=True, markup=False)
        steps.append(applied_figures(done))

    store = DeltaStore(source)
    public = None if key is None else read_public_key(key)
    try:
        with console.status("fetching") as status:
            pull_deltas(
                store,
                bundle,
                public,
                applied,
                lambda here, whole: status.update(f"fetching: {here / 1e6:.1f} of {whole / 1e6:.1f} MB"),
            )
    finally:
        # A later delta may fail after earlier ones were applied.
        write_json(json_file, {"bundle": str(bundle), "applied": steps})
        if steps and port is not None:
            reload_command(port, bundle, host, token_file)
    if not steps:
        console.print(f"{bundle}: is up to date, {store.shown} has no delta for it", soft_wrap=True, markup=False)
    elif port is None:
        console.print(f"Next: gemel reload {bundle} --port PORT", soft_wrap=True, markup=False)
