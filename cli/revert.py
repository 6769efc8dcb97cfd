"""Command ``gemel revert``: have queries run with their original weights again, or with the merged ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import open_console, write_json
from .apply import KeyOpt, ReloadPortOpt, step_aside
from .options import BundleArg, DebugOpt, JsonOpt
from .remote import HostOpt, TokenOpt, reload_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..bundles.revert_bundle import RevertedBundle

__all__ = ["revert_command", "reverted_figures", "reverted_lines"]


def revert_command(
    bundle: BundleArg,
    queries: Annotated[list[str], typer.Argument(help="Names of queries.", metavar="QUERY...")],
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the merged weights.")] = False,
    key: KeyOpt = None,
    port: ReloadPortOpt = None,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Have queries run with their original weights again, in one step, also while the bundle runs.

    The other queries keep their weights. The bundle must have the original weights, or know where they are:
    gemel-compile --originals.

    [dim]gemel revert bundle/ cabin-faces --port 9464[/dim]

    [dim]gemel revert bundle/ cabin-faces --undo --port 9464[/dim]
    """
    step_aside()
    from ..bundles.revert_bundle import revert_queries
    from ..bundles.signature import read_public_key

    console, public = open_console(), None if key is None else read_public_key(key)
    with console.status("writing") as status:
        done = revert_queries(
            bundle,
            queries,
            undo=undo,
            key=public,
            progress=lambda here, whole: status.update(f"fetching: {here / 1e6:.1f} of {whole / 1e6:.1f} MB"),
        )
    for line in reverted_lines(done, undo=undo):
        console.print(line, soft_wrap=True, markup=False)
    write_json(json_file, reverted_figures(done, undo=undo))
    if port is not None:
        reload_command(port, done.bundle.path, host, token_file)
    else:
        console.print(f"Next: gemel reload {done.bundle.path} --port PORT", soft_wrap=True, markup=False)


def reverted_lines(done: RevertedBundle, *, undo: bool = False) -> Iterator[str]:
    """Yield lines about queries that were reverted, or of which that was undone."""
    from ..check.contents.original_figures import unique_bytes
    from .compile_parts import warn_of_memory

    weights = "merged" if undo else "original"
    if done.fetched:
        yield f"{done.bundle.path}: original weights came in a delta of {done.fetched / 1e6:.2f} MB"
    size = unique_bytes(done.bundle.manifest) / 1e6
    yield (
        f"{done.bundle.path}: {', '.join(done.queries)} now with {weights} weights; bundle {done.before[:12]} is now"
        f" {done.bundle.id[:12]}, with {size:.2f} MB of weights to run"
    )
    if done.along:
        yield f"{', '.join(done.along)} too: {'they have' if len(done.along) > 1 else 'it has'} the same model"
    if (warning := warn_of_memory(done.bundle)) is not None:
        yield warning


def reverted_figures(done: RevertedBundle, *, undo: bool = False) -> dict[str, Any]:
    """Return JSON fields about queries that were reverted, or of which that was undone."""
    return {
        "bundle": str(done.bundle.path),
        "before": done.before,
        "after": done.bundle.id,
        "undone": undo,
        "queries": list(done.queries),
        "along": list(done.along),
        "fetched_bytes": done.fetched,
        "reverted": sorted(done.bundle.manifest.reverted),
    }
