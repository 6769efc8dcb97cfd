"""Command ``gemel pull``: fetch deltas from a folder or server, and apply them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import Stop, open_console, write_json
from ..errors import GemelError, InputError, first_line
from .apply import KeyOpt, ReloadPortOpt, applied_figures, applied_lines, step_aside
from .options import BundleArg, DebugOpt, JsonOpt
from .remote import HostOpt, TokenOpt, reload_command
from .sample_flags import period_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..bundles.apply_delta import AppliedDelta

__all__ = ["pull_command"]


def pull_command(
    source: Annotated[
        str, typer.Argument(help="Delta, or folder of deltas: a path, http(s)://... or s3://...", metavar="URL|DIR")
    ],
    bundle: BundleArg,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new deltas until stopped.")] = False,
    every: Annotated[
        str, typer.Option(help="With --follow, time after which new deltas are looked for.", metavar="TIME")
    ] = "30s",
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

    [dim]gemel pull https://example.org/deltas bundle/ --port 9464 --follow --every 10m[/dim]
    """
    step_aside()
    from ..bundles.delta_store import DeltaStore
    from ..bundles.pull_deltas import pull_deltas
    from ..bundles.signature import read_public_key

    pause = period_of("--every", every)
    console, steps = open_console(), list[dict[str, Any]]()
    store = DeltaStore(source)
    if follow and store.is_file:
        raise InputError(f"--follow: {store.shown} is one delta; a folder of deltas is expected")
    public = None if key is None else read_public_key(key)
    waits = False

    def look(stop: Stop | None = None) -> None:
        """Apply what is new, and have the run go on with it; also if a later delta or an earlier reload failed."""

        def applied(done: AppliedDelta) -> None:
            nonlocal waits
            for line in applied_lines(done):
                console.print(line, soft_wrap=True, markup=False)
            steps.append(applied_figures(done))
            waits = True

        def fetched(here: int, whole: int) -> None:
            status.update(f"fetching: {here / 1e6:.1f} of {whole / 1e6:.1f} MB")
            if stop is not None:
                stop.check()

        nonlocal waits
        try:
            with console.status("fetching") as status:
                pull_deltas(store, bundle, public, applied, fetched)
        finally:
            write_json(json_file, {"bundle": str(bundle), "applied": steps})
            if waits and port is not None:
                reload_command(port, bundle, host, token_file)
                waits = False

    if follow:
        _follow(console, look, pause)
        return
    look()
    if not steps:
        console.print(f"{bundle}: is up to date, {store.shown} has no delta for it", soft_wrap=True, markup=False)
    elif port is None:
        console.print(f"Next: gemel reload {bundle} --port PORT", soft_wrap=True, markup=False)


def _follow(console: Console, look: Callable[[Stop], None], pause: float) -> None:
    """Look for deltas again and again until a signal comes. What fails is printed once, and tried at the next look."""
    trouble: str | None = None
    with Stop() as stop:
        while not stop.event.is_set():
            earlier = trouble
            try:
                look(stop)
                trouble = None
            except GemelError as error:
                trouble = first_line(error)
                if trouble != earlier:
                    console.print(trouble, soft_wrap=True, markup=False)
            except KeyboardInterrupt:
                break
            stop.event.wait(pause)
    if trouble is not None:
        raise typer.Exit(1)
