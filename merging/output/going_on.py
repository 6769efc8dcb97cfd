"""What a merge goes on from: the folder of an earlier merge, and frames that boxes have sampled since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...workload.document.schema import Workload
from ..strategies import SearchSettings
from .earlier import EarlierMerge, open_earlier
from .kept_samples import MergeSamples

__all__ = ["GoesOn", "open_going_on"]


@dataclass(frozen=True)
class GoesOn:
    """Earlier merge that a search goes on from, and samples that it is trained on and judged by."""

    earlier: EarlierMerge | None
    """None for a search that starts from the original weights."""
    samples: MergeSamples | None


def open_going_on(
    workload: Workload, earlier: Path | None, samples: MergeSamples | None, strategy: str, settings: SearchSettings
) -> GoesOn:
    """Open the earlier merge that a merge goes on from with samples.

    Args:
        workload: the original workload.
        earlier: folder of the earlier merge; None without one.
        samples: the samples; None without any.
        strategy: name of the strategy that the user chose.
        settings: settings of the search.

    Raises:
        InputError: the earlier merge cannot be used, or the options do not go together.
    """
    if earlier is None:
        return GoesOn(None, samples)
    if samples is None:
        raise InputError("--from: give the frames that the boxes have sampled, too: --samples DIR")
    if strategy != "together":
        raise InputError(f"--strategy: {strategy!r} does not go on from an earlier merge; leave it or --from out")
    if settings.compress:
        raise InputError("--compress: does not go on from an earlier merge; leave it or --from out")
    return GoesOn(open_earlier(earlier, workload), samples)
