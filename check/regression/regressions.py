"""Comparison of a bundle's current baseline with an earlier one: differences that are worse, better, or neither."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .baseline import Baseline, EnginesBaseline, StageBaseline

__all__ = ["GROWTH", "SLOWDOWN", "Difference", "compare_baselines"]

GROWTH = 0.01
"""Maximum growth of a TensorRT engine that is not reported as worse, as a fraction of its size in the old baseline.

Engines of one program have the same size every time, to the byte. The margin is not for random variation: it ignores
growth that is too small to matter."""
SLOWDOWN = 0.25
"""Maximum growth of a model's run time that is not reported as worse, as a fraction of the earlier run time.

Run times are relative to the run time in a plain ONNX Runtime session."""


@dataclass(frozen=True)
class Difference:
    """One difference between an earlier baseline of a bundle and the current one."""

    name: str
    """Name of the model, stage, tensor or engine that differs between two baselines."""
    what: str
    """Description of one difference between two baselines, for a message."""
    kind: Literal["worse", "changed", "better"]
    """Kind of a difference between two baselines; ``changed`` is neither worse nor better, but is reported."""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def compare_baselines(before: Baseline, now: Baseline) -> list[Difference]:
    """Return all differences between two baselines of a bundle: in models, weights, sharing, engines, latency.

    A difference is worse if a model, stage or engine is missing, a model has another mode or another program, fewer
    weights are inputs, the weights have more unique bytes, a tensor or a program is no longer shared, an engine has
    more layers or grew by more than :data:`GROWTH`, or a run is slower by more than :data:`SLOWDOWN`.

    Args:
        before: baseline of an earlier version of the bundle.
        now: baseline of the current bundle.
    """
    return [*_models(before, now), *_weights(before, now), *_engines(before, now), *_latency(before, now)]


def _models(before: Baseline, now: Baseline) -> Iterator[Difference]:
    for name, old in before.models.items():
        new = now.models.get(name)
        if new is None:
            yield Difference(name, "is not in the bundle", "worse")
            continue
        if new.mode != old.mode:
            yield Difference(name, f"mode {new.mode}, baseline {old.mode}", "worse")
        for stage in dict.fromkeys((*old.stages, *new.stages)):
            yield from _stages(_place(name, stage), old.stages.get(stage), new.stages.get(stage))
    for name in now.models:
        if name not in before.models:
            yield Difference(name, "is not in the baseline", "changed")
    programs = _programs(now)
    for place, others in _parted(_groups(_programs(before), programs), programs):
        yield Difference(place, f"was one program with {_first(others)}, and no longer is", "worse")


def _stages(place: str, old: StageBaseline | None, new: StageBaseline | None) -> Iterator[Difference]:
    if old is None or new is None:
        where = "baseline" if old is None else "bundle"
        yield Difference(place, f"is not in the {where}", "worse")
        return
    # An operator that only one of the programs has counts as 0 in the other.
    counts = [
        (operator, new.operators.get(operator, 0), old.operators.get(operator, 0))
        for operator in sorted(old.operators.keys() | new.operators.keys())
    ]
    counts.append(("weights as inputs", new.inputs, old.inputs))
    changed = [f"{what}: {there}, baseline {before}" for what, there, before in counts if there != before]
    if changed or new.graph != old.graph:
        what = "; ".join(changed) or "the same operators, with other attributes, shapes or order"
        yield Difference(place, f"another program: {what}", "worse")
    elif new.program != old.program:
        yield Difference(place, "the same program but for its constants", "changed")


def _weights(before: Baseline, now: Baseline) -> Iterator[Difference]:
    if now.unique_bytes != before.unique_bytes:
        kind: Literal["worse", "better"] = "worse" if now.unique_bytes > before.unique_bytes else "better"
        yield Difference("weights", f"{now.unique_bytes:,} unique bytes, baseline {before.unique_bytes:,}", kind)
    known, tensors = _tensors(before), _tensors(now)
    for shared in before.shared:
        # Uses by a missing model are left out: the missing model is reported already.
        uses = [use for use in shared.uses if use.partition("/")[0] in now.models]
        for use, others in _parted([uses], tensors):
            with_whom = f"{_first([_words(other) for other in others])} ({_mb(shared.bytes)})"
            yield Difference(_words(use), f"was shared with {with_whom}, and no longer is", "worse")
    gained = [shared for shared in now.shared if len({known.get(use, use) for use in shared.uses}) > 1]
    if gained:
        size = _mb(sum(shared.bytes for shared in gained))
        yield Difference("sharing", f"tensors in more places than in the baseline: {len(gained)}, {size}", "better")


def _engines(before: Baseline, now: Baseline) -> Iterator[Difference]:
    for old in before.engines:
        name = f"engines of {old.library}"
        same = [each for each in now.engines if each.library == old.library]
        missing = [target for target in old.targets if not any(target in each.targets for each in same)]
        alike = [each for each in same if (each.targets, each.device) == (old.targets, old.device)]
        new = next((each for each in alike if each.version == old.version), None)
        if missing:
            yield Difference(name, f"there are none for {' and '.join(missing)}; the baseline has them", "worse")
        elif new is None:
            here = ", ".join(_title(each) for each in alike or same)
            yield Difference(name, f"bytes and layers are not compared: {here}, baseline {_title(old)}", "changed")
        else:
            yield from _sizes(old, new, {(name, stage) for name, model in now.models.items() for stage in model.stages})
    known = {(each.library, each.targets, each.device) for each in before.engines}
    for new in now.engines:
        if (new.library, new.targets, new.device) not in known:
            yield Difference(f"engines of {new.library}", f"{_title(new)} is not in the baseline", "changed")


def _sizes(old: EnginesBaseline, new: EnginesBaseline, there: Container[tuple[str, str]]) -> Iterator[Difference]:
    for model, stages in old.engines.items():
        for stage, before in stages.items():
            now = new.engines.get(model, {}).get(stage)
            if now is None:
                # A missing model or stage is reported already.
                if (model, stage) in there:
                    yield Difference(f"engine of {_place(model, stage)}", f"{old.library} has none now", "worse")
                continue
            if now == before:
                continue
            worse = now.bytes > before.bytes * (1 + GROWTH) or now.layers > before.layers or now.inputs < before.inputs
            growth = f" ({now.bytes / before.bytes - 1:+.2%})" if before.bytes else ""
            counts = [
                f"{what}: {there:,}, baseline {then:,}{more}"
                for what, there, then, more in (
                    ("bytes", now.bytes, before.bytes, growth),
                    ("layers", now.layers, before.layers, ""),
                    ("weights as inputs", now.inputs, before.inputs, ""),
                )
                if there != then
            ]
            better = now.bytes < before.bytes or now.layers < before.layers
            yield Difference(
                f"engine of {_place(model, stage)}",
                f"{old.library} for {' and '.join(old.targets)}: {'; '.join(counts)}",
                "worse" if worse else "better" if better else "changed",
            )


def _latency(before: Baseline, now: Baseline) -> Iterator[Difference]:
    if before.latency and not now.latency:
        yield Difference("latency", "not compared: it was not measured now", "changed")
    for name, old in before.latency.items():
        if (new := now.latency.get(name)) is None:
            continue
        what = f"a run takes {new:.3g} of a plain session's time, baseline {old:.3g}"
        if new > old * (1 + SLOWDOWN):
            yield Difference(f"latency of {name}", what, "worse")
        elif new < old / (1 + SLOWDOWN):
            yield Difference(f"latency of {name}", what, "better")


def _title(engines: EnginesBaseline) -> str:
    where = f" on {engines.device}" if engines.device else ""
    return f"version {engines.version} for {' and '.join(engines.targets)}{where}"


def _programs(baseline: Baseline) -> dict[str, str]:
    """Return name of each stage in a baseline (``model`` or ``model/stage``) -> id of the stage's program."""
    return {
        _place(name, stage): spec.program
        for name, model in baseline.models.items()
        for stage, spec in model.stages.items()
    }


def _tensors(baseline: Baseline) -> dict[str, int]:
    """Return name of each initializer that holds a shared tensor -> index of the tensor in a baseline's list
    ``shared``."""
    return {use: number for number, shared in enumerate(baseline.shared) for use in shared.uses}


def _groups(values: Mapping[str, Hashable], kept: Container[str]) -> Iterable[list[str]]:
    """Group the names of a mapping by their value, and return one list of names per value.

    Args:
        values: name -> value.
        kept: names to group; others are left out.
    """
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, value in values.items():
        if name in kept:
            groups[value].append(name)
    return groups.values()


def _parted(groups: Iterable[Sequence[str]], now: Mapping[str, Hashable]) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, rest) for each name that no longer has the same value as the rest of its group.

    The rest of a group is the largest set of its names that still have one value.

    Args:
        groups: groups of names that had one value earlier.
        now: name -> current value; a name that is missing counts as having a value of its own.
    """
    for parts in (list(_groups({name: now.get(name, name) for name in group}, group)) for group in groups):
        most = max(parts, key=len, default=[])
        yield from ((name, most) for part in parts if part is not most for name in part)


def _place(model: str, stage: str) -> str:
    return model if stage == "main" else f"{model}/{stage}"


def _words(use: str) -> str:
    """Return the name of an initializer for a message: ``model/stage name``, without the stage if it is ``main``."""
    place, _, name = use.partition(": ")
    return f"{_place(*place.split('/'))} {name}"


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"
