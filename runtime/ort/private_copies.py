"""How INT8 models run on a CPU: bound or packed.

Bound, a model is a float32 program whose weights are shared and swapped like all others. Packed, it computes in int8,
often in half the time, and its session holds a copy of its kernels, a quarter of their size, that is neither shared nor
swapped. Which of the two is faster is measured once; how many copies there is room for, the memory setting says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from time import thread_time

from ...bundles.budget import budget
from ..device_cache import PrivateCopy
from ..timing import medians

__all__ = ["choose_private_copies", "cpu_times"]

_WARM_UP, _ROUNDS = 3, 15
"""Runs of each side."""
_ENOUGH_S = 1.0
"""Of a comparison; then it has gone on for long enough, with one round at least."""


@dataclass(frozen=True)
class _Option:
    """Packing at least ``packed``, so that no bound model takes more than ``limit`` bytes."""

    limit: int
    packed: frozenset[str]
    bytes: int


def choose_private_copies(
    setting: str | int,
    sizes: Mapping[str, int],
    segments_of: Mapping[str, Sequence[str]],
    packings: Mapping[str, PrivateCopy],
    private: int = 0,
) -> tuple[frozenset[str], int]:
    """Which models to pack: those that are faster so, as far as there is room; others where they do not fit otherwise.

    Copies stay in memory, and beside them the hungriest of the bound models must fit. Faster runs are not worth more
    swapping: beyond what must be packed, a model is packed only where bound models, all of them together, do not lack
    more memory than before. ``all`` has room for everything. ``min`` is the least with which all models run, whichever
    of them are packed. Shares are of what models take when none is packed, and so do not depend on the choice.

    Args:
        setting: see :func:`gemel.bundles.budget.parse_memory`.
        sizes: bytes of each segment of these models.
        segments_of: of each model that can be bound.
        packings: of those of them that can be packed.
        private: bytes that stay loaded in any case.

    Returns:
        Names of the models to pack, and the bytes that the setting allows.

    Raises:
        InputError: no choice fits; with the least that one needs.
    """
    options = list(_options(sizes, segments_of, packings, private))
    least, whole = min(option.bytes for option in options), sum(sizes.values()) + private
    if setting == "min":
        allowed = least
    elif setting == "all":
        allowed = whole + sum(packing.bytes for packing in packings.values())
    else:
        allowed = max(least, budget(setting, whole, ()))

    def missing(packed: Set[str]) -> int:
        """Bytes that bound models, all of them together, need beyond what copies leave them: they swap."""
        bound = _union(sizes, (segments for model, segments in segments_of.items() if model not in packed))
        return max(0, bound + private + sum(packings[model].bytes for model in packed) - allowed)

    choices = [_filled(option, packings, allowed, missing) for option in options if option.bytes <= allowed]
    # The first packs the fewest that must be.
    most = missing(choices[0])
    packed = max(
        (chosen for chosen in choices if missing(chosen) <= most),
        key=lambda chosen: sum(packings[model].gain_ms for model in chosen),
    )
    bound = {model: segments for model, segments in segments_of.items() if model not in packed}
    copies = private + sum(packings[model].bytes for model in packed)
    total = _union(sizes, bound.values()) if setting == "all" else whole - copies
    needs = [sum(sizes[segment] for segment in segments) for segments in bound.values()]
    return packed, budget(setting, total, needs, copies)


def cpu_times(runs: Sequence[Callable[[], object]]) -> list[float]:
    """Milliseconds of this thread's CPU time, medians of runs in turn."""
    return medians(runs, thread_time, warm_up=_WARM_UP, rounds=_ROUNDS, enough_s=_ENOUGH_S)


def _union(sizes: Mapping[str, int], models: Iterable[Sequence[str]]) -> int:
    """Bytes of the segments of some models, each segment once."""
    return sum(sizes[segment] for segment in {segment for segments in models for segment in segments})


def _options(
    sizes: Mapping[str, int],
    segments_of: Mapping[str, Sequence[str]],
    packings: Mapping[str, PrivateCopy],
    private: int,
) -> Iterator[_Option]:
    needs = {model: sum(sizes[segment] for segment in segments) for model, segments in segments_of.items()}
    for limit in sorted({0, *needs.values()}, reverse=True):
        packed = frozenset(model for model, need in needs.items() if need > limit)
        if not packed <= packings.keys():
            return
        yield _Option(limit, packed, limit + private + sum(packings[model].bytes for model in packed))


def _filled(
    option: _Option, packings: Mapping[str, PrivateCopy], allowed: int, missing: Callable[[Set[str]], int]
) -> frozenset[str]:
    """An option, and of the models that are faster packed all that there is room for, best time for a byte first.

    Args:
        option: what is packed in any case.
        packings: of all models that can be packed.
        allowed: bytes.
        missing: what is swapped when some are packed; packing one more must not make it more.
    """
    chosen, left = option.packed, allowed - option.bytes
    faster = {model: packing for model, packing in packings.items() if packing.is_faster}
    order = sorted(faster, key=lambda model: -faster[model].gain_ms / max(faster[model].bytes, 1))
    before = None
    # Again as long as some were packed: a segment goes with the last of the models that share it.
    while chosen != before:
        before = chosen
        for model in order:
            more = chosen | {model}
            if more != chosen and faster[model].bytes <= left and missing(more) <= missing(chosen):
                chosen, left = more, left - faster[model].bytes
    return chosen
