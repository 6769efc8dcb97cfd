"""Command ``gemel inspect``: show the models, queries and weights of a bundle, and which weights are shared."""

from __future__ import annotations

from ..console import open_console, write_json
from .options import BundleArg, DebugOpt, JsonOpt

__all__ = ["inspect_command"]


def inspect_command(bundle: BundleArg, json_file: JsonOpt = None, debug: DebugOpt = False) -> None:
    """Show the models, queries and weights of a bundle, and which weights models share.

    [dim]gemel inspect bundle/ --json bundle.json[/dim]
    """
    from ..bundles.reader import open_bundle
    from ..check.contents.inspect import describe
    from ..check.contents.inspect_tables import bundle_tables

    opened = open_bundle(bundle)
    console = open_console()
    figures = describe(opened)
    for table in bundle_tables(opened, figures):
        console.print(table, soft_wrap=isinstance(table, str))
    write_json(json_file, figures)
    console.print(f"Next: gemel check {bundle}")
