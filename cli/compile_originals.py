"""Original weights that ``gemel compile --originals`` puts into a bundle, or into a delta that boxes can fetch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..bundles.manifest import Manifest
    from ..bundles.reader import Bundle
    from ..compiler.compile import CompileProgress, FinishBundle

__all__ = ["check_originals", "describe_originals", "finish_with"]


def check_originals(originals: Path | None, at: str | None, workload: Path) -> None:
    """Check the flags about original weights.

    Raises:
        InputError: the originals are not there, are what is compiled, or an address is given without them.
    """
    if originals is None:
        if at is not None:
            raise InputError("--originals-at: give --originals with it, of which the delta is made")
        return
    if not originals.exists():
        raise InputError(f"--originals: {originals}: is not there")
    if originals.resolve() == workload.resolve():
        raise InputError(f"--originals: {originals} is the workload that is compiled; that of the merge is expected")


@contextmanager
def finish_with(
    originals: Path | None, at: str | None, output: Path, step: CompileProgress, precision: str, ranges: str
) -> Iterator[FinishBundle | None]:
    """Open or compile the original models for the ``with`` block, and yield what adds them to a compiled bundle.

    Args:
        originals: bundle of the original models, or their workload; None yields None.
        at: where boxes will find the original weights; None to put them into the bundle.
        output: folder of the bundle that is compiled.
        step: function called with the name of a stage and a line about what was done.
        precision: precision of queries that name none.
        ranges: method that chooses int8 ranges.

    Raises:
        GemelError: the original models cannot be opened or compiled.
    """
    if originals is None:
        yield None
        return
    from ..bundles.originals import add_originals, note_address, ship_originals
    from ..bundles.reader import open_bundle
    from ..check.drift.bundle_answers import open_originals
    from .precision import PrecisionConverter

    with open_originals(
        originals,
        lambda what: step("originals", what),
        lambda workload, path: PrecisionConverter(workload, path, precision, ranges),
    ) as original:
        if at is None:
            yield lambda merged, work: add_originals(merged, original, work)
            return
        local = "://" not in at
        folder = Path(at).absolute() if local else output.absolute().with_name(f"{output.absolute().name}-originals")

        def finish(merged: Bundle, work: Path) -> Manifest:
            content = note_address(merged, work, str(folder) if local else at)
            folder.mkdir(parents=True, exist_ok=True)
            done = ship_originals(open_bundle(work), original, folder)
            upload = "" if local else "; put it into the folder that --originals-at names"
            step("originals", f"{done.path}: {done.bytes / 1e6:.1f} MB{upload}")
            return content

        yield finish


def describe_originals(bundle: Bundle) -> Iterator[str]:
    """Yield lines about the original weights in a bundle, and what a revert takes."""
    from ..check.contents.original_figures import original_figures, unique_bytes

    figures = original_figures(bundle)
    if figures is None or not figures["models"]:
        return
    models, now = figures["models"].values(), unique_bytes(bundle.manifest)
    queries = [query for model in models for query in model["queries"]]
    yield f"{figures['bytes'] / 1e6:.1f} MB more on disk, not loaded, for gemel revert of {', '.join(queries)}"
    most = max(model["unique_bytes"] for model in models)
    yield f"a revert of one query takes at most {(most - now) / 1e6:.1f} MB more memory if all weights are resident"
