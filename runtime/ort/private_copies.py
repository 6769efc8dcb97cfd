"""Choice of the INT8 models that get a private copy of their weights on a CPU: pure functions.

A bound INT8 model runs as a float32 program whose weights are shared and swapped like all others. A packed INT8 model
computes in int8, often in half the time, but its session holds a private copy of the kernels, which is a quarter of
their float32 size and is neither shared nor swapped. The times of the two forms are measured once (:mod:`.copy_times`).
The memory setting limits how many private copies there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from ...bundles.budget import budget
from .baked import PrivateCopy

__all__ = ["choose_private_copies"]


@dataclass(frozen=True)
class _Option:
    """Candidate set of private copies: the smallest with which no bound model needs more bytes than a limit."""

    limit: int
    """Maximum bytes that the segments of one bound model may take."""
    packed: frozenset[str]
    """Models that get a private copy, because their segments have more than ``limit`` bytes."""
    bytes: int
    """Bytes of memory that the models need with this set of private copies: those copies, the limit for the segments of
    one bound model, and the bytes that stay loaded in any case."""


def choose_private_copies(
    setting: str | int,
    sizes: Mapping[str, int],
    segments_of: Mapping[str, Sequence[str]],
    copies: Mapping[str, PrivateCopy],
    private: int = 0,
) -> tuple[frozenset[str], int]:
    """Choose the models that get a private copy: those that run faster with one, as far as the setting has room.

    Private copies stay in memory, and the largest bound model must fit into the rest. A model that does not fit bound
    gets a private copy even if that makes it slower. A model that fits bound gets a private copy only if the bound
    models together do not lack more memory than before, because a faster run is not worth more swapping.

    The setting ``all`` has room for everything. ``min`` is the least memory with which all models run, whichever of
    them have private copies. A percentage is relative to the bytes that the models need when all are bound, so it does
    not depend on the choice.

    Args:
        setting: memory setting; see :func:`gemel.bundles.budget.parse_memory`.
        sizes: segment -> bytes, for the segments of the models in ``segments_of``.
        segments_of: model -> its segments, for models that can be bound.
        copies: model -> size and times of its private copy, for models of ``segments_of`` that can have one.
        private: bytes that stay loaded in any case, in addition to bound models and the private copies in ``copies``.

    Returns:
        Names of the models that get a private copy, and the bytes that the setting allows.

    Raises:
        InputError: no choice fits; the message states the least memory that a choice needs.
    """
    options = list(_options(sizes, segments_of, copies, private))
    least, whole = min(option.bytes for option in options), sum(sizes.values()) + private
    if setting == "min":
        allowed = least
    elif setting == "all":
        allowed = whole + sum(copy.bytes for copy in copies.values())
    else:
        allowed = max(least, budget(setting, whole, ()))

    def missing(packed: Set[str]) -> int:
        """Return the bytes by which all bound models together exceed the memory that private copies leave.

        The result is the number of bytes that must be swapped.
        """
        bound = _union(sizes, (segments for model, segments in segments_of.items() if model not in packed))
        return max(0, bound + private + sum(copies[model].bytes for model in packed) - allowed)

    choices = [_filled(option, copies, allowed, missing) for option in options if option.bytes <= allowed]
    # Options are in the order of falling limits, so the first one has the fewest copies that must be made.
    most = missing(choices[0])
    # A gain that is too small to justify a private copy must not favour an option with that copy.
    gains = {model: copy.gain_ms if copy.is_faster else min(copy.gain_ms, 0.0) for model, copy in copies.items()}
    packed = max(
        (chosen for chosen in choices if missing(chosen) <= most),
        key=lambda chosen: sum(gains[model] for model in chosen),
    )
    bound = {model: segments for model, segments in segments_of.items() if model not in packed}
    loaded = private + sum(copies[model].bytes for model in packed)
    total = _union(sizes, bound.values()) if setting == "all" else whole - loaded
    needs = [sum(sizes[segment] for segment in segments) for segments in bound.values()]
    return packed, budget(setting, total, needs, loaded)


def _union(sizes: Mapping[str, int], models: Iterable[Sequence[str]]) -> int:
    """Return the total bytes of the segments of some models, each segment counted once."""
    return sum(sizes[segment] for segment in {segment for segments in models for segment in segments})


def _options(
    sizes: Mapping[str, int],
    segments_of: Mapping[str, Sequence[str]],
    copies: Mapping[str, PrivateCopy],
    private: int,
) -> Iterator[_Option]:
    """Yield each different candidate set of private copies, from the largest limit on a bound model's bytes down to 0.

    Stop at the first limit for which a model would need a private copy but cannot have one.
    """
    needs = {model: sum(sizes[segment] for segment in segments) for model, segments in segments_of.items()}
    for limit in sorted({0, *needs.values()}, reverse=True):
        packed = frozenset(model for model, need in needs.items() if need > limit)
        if not packed <= copies.keys():
            return
        yield _Option(limit, packed, limit + private + sum(copies[model].bytes for model in packed))


def _filled(
    option: _Option, copies: Mapping[str, PrivateCopy], allowed: int, missing: Callable[[Set[str]], int]
) -> frozenset[str]:
    """Return the models that get a private copy: those of an option, and others that run faster while there is room.

    An option is the smallest set of private copies with which no bound model needs more bytes than a limit. Of the
    other models, the one whose copy saves the most time per byte is added first.

    Args:
        option: option whose models get a private copy in any case.
        copies: model -> size and times of its private copy, for all models that can have one.
        allowed: bytes that the memory setting allows.
        missing: function that returns the bytes that must be swapped, called with the models that have private copies.
            One more private copy must not increase these bytes.
    """
    chosen, left = option.packed, allowed - option.bytes
    faster = {model: copy for model, copy in copies.items() if copy.is_faster}
    order = sorted(faster, key=lambda model: -faster[model].gain_ms / max(faster[model].bytes, 1))
    before = None
    # Repeat while copies are added: a segment leaves the arena only when the last model that shares it has a copy.
    while chosen != before:
        before = chosen
        for model in order:
            more = chosen | {model}
            if more != chosen and faster[model].bytes <= left and missing(more) <= missing(chosen):
                chosen, left = more, left - faster[model].bytes
    return chosen
