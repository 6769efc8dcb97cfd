"""Commands ``gemel status``, ``reload``, ``pause`` and ``resume``: ask a running ``gemel-run`` over HTTP."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from ..console import open_console, write_json
from ..errors import BackendError, InputError
from .options import DebugOpt, JsonOpt

__all__ = ["HostOpt", "TokenOpt", "pause_command", "reload_command", "resume_command", "status_command"]

_TIMEOUT_S = 10.0
"""Seconds to wait for a running gemel-run to answer a request that changes nothing."""
_LONG_S = 3600.0
"""Seconds to wait for a running gemel-run to reload a bundle, which may prepare models for the device."""

PortOpt = Annotated[
    int, typer.Option(help="Port that gemel-run was given as --metrics-port.", metavar="PORT", min=1, max=65535)
]
HostOpt = Annotated[str, typer.Option(help="Machine on which gemel-run runs.", metavar="HOST")]
TokenOpt = Annotated[
    Path | None,
    typer.Option(help="File with the token of gemel-run. Default: the variable GEMEL_TOKEN.", metavar="FILE"),
]
NameArg = Annotated[str, typer.Argument(help="Name of a query or, with --feed, of a feed.")]
FeedOpt = Annotated[bool, typer.Option("--feed", help="The name is that of a feed.")]


def status_command(
    port: PortOpt,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    json_file: JsonOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Show what a running gemel-run does: queries, feeds, memory, outputs and the last reload.

    [dim]gemel status --port 9464[/dim]
    """
    from .status_tables import status_tables

    status = _ask(host, port, token_file, "GET", "/status", expected=("ready", "queries", "segments"))
    console = open_console()
    for table in status_tables(status):
        console.print(table)
    write_json(json_file, status)


def reload_command(
    port: PortOpt,
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle to go on with. Default: the running one, as it is on disk now.")
    ] = None,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Have a running gemel-run go on with another bundle, while its cameras run on.

    [dim]gemel reload new-bundle/ --port 9464[/dim]
    """
    body = {} if bundle is None else {"bundle": str(bundle.resolve())}
    expected = ("bundle", "seconds", "queries")
    done = _ask(host, port, token_file, "POST", "/reload", body, timeout_s=_LONG_S, expected=expected)
    console = open_console()
    console.print(f"{done['bundle']} runs now, after {done['seconds']:.1f} s", soft_wrap=True, markup=False)
    console.print(f"weights: {done['kept_bytes'] / 1e6:.1f} MB are in both, {done['new_bytes'] / 1e6:.1f} MB are new")
    for what, names in done["queries"].items():
        if names:
            console.print(f"queries {what}: {', '.join(names)}", soft_wrap=True, markup=False)


def pause_command(
    name: NameArg,
    port: PortOpt,
    feed: FeedOpt = False,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Have a running gemel-run leave out a query, or close a camera, until it is resumed.

    [dim]gemel pause gate --feed --port 9464[/dim]
    """
    _pause(name, feed, "pause", host, port, token_file)


def resume_command(
    name: NameArg,
    port: PortOpt,
    feed: FeedOpt = False,
    host: HostOpt = "127.0.0.1",
    token_file: TokenOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Have a running gemel-run go on with a query or camera that was paused.

    [dim]gemel resume gate --feed --port 9464[/dim]
    """
    _pause(name, feed, "resume", host, port, token_file)


def _pause(name: str, feed: bool, verb: str, host: str, port: int, token_file: Path | None) -> None:
    kind = "feeds" if feed else "queries"
    path = f"/{kind}/{quote(name, safe='', errors='surrogateescape')}/{verb}"
    _ask(host, port, token_file, "POST", path, expected=(kind,))
    open_console().print(f"{'feed' if feed else 'query'} {name}: {verb}d", markup=False)


def _ask(
    host: str,
    port: int,
    token_file: Path | None,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    expected: Collection[str],
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Send a request to a running gemel-run, and return its answer.

    Args:
        host: machine on which gemel-run runs.
        port: port of its HTTP server.
        token_file: file with the token; None for the environment variable.
        method: method of the HTTP request.
        path: path of the HTTP request.
        body: JSON fields of the request's body; no body if None.
        expected: fields that the answer of a gemel-run has.
        timeout_s: maximum seconds without an answer.

    Raises:
        InputError: the request was refused.
        BackendError: nobody answers, or another program does.
    """
    from ..runtime.service.token import read_token

    token = read_token(token_file)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    from http.client import HTTPConnection, HTTPException

    link: HTTPConnection | None = None
    try:
        link = HTTPConnection(host, port, timeout=timeout_s)
        link.request(method, path, None if body is None else json.dumps(body), headers)
        answer = link.getresponse()
        content = json.loads(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BackendError(f"{host}:{port}: no answer of a running gemel-run: {reason}") from error
    finally:
        if link is not None:
            link.close()
    if not isinstance(content, dict) or (answer.status < 400 and not content.keys() >= set(expected)):
        raise BackendError(f"{host}:{port}: the answer is not that of a gemel-run")
    if answer.status >= 400:
        raise InputError(str(content.get("error") or content.get("reason") or f"refused with status {answer.status}"))
    return content
