"""What got worse: a bundle beside the baseline of what it was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .baseline import Baseline, EnginesBaseline, StageBaseline

__all__ = ["GROWTH", "SLOWDOWN", "Difference", "compare_baselines"]

GROWTH = 0.01
"""By how much of its size an engine may grow. One program's engines come out with the same size every time, to the
byte, so that this is no room for chance: it lets pass what is not worth a look."""
SLOWDOWN = 0.25
"""By how much of it the ratio of run times may grow."""


@dataclass(frozen=True)
class Difference:
    """Between a baseline and what is there now."""

    name: str
    """Of what differs."""
    what: str
    kind: Literal["worse", "changed", "better"]
    """``changed`` is worth knowing, and neither."""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def compare_baselines(before: Baseline, now: Baseline) -> list[Difference]:
    """What differs, in the order models, weights, sharing, engines and latency.

    Worse are: a model, stage or engine that is missing, another mode or another program, fewer weights that are inputs,
    more unique bytes, a tensor or a program that is no longer shared, an engine with more layers or larger by more
    than :data:`GROWTH`, and a run slower by more than :data:`SLOWDOWN`.

    Args:
        before: the baseline.
        now: what there is.
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
    # What a program does not have at all is counted, too.
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
        # Of a model that is missing, that was said.
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
                # Of a model or stage that is missing, that was said.
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
    """Place to program."""
    return {
        _place(name, stage): spec.program
        for name, model in baseline.models.items()
        for stage, spec in model.stages.items()
    }


def _tensors(baseline: Baseline) -> dict[str, int]:
    """Use to the tensor, as a number, of those that are shared."""
    return {use: number for number, shared in enumerate(baseline.shared) for use in shared.uses}


def _groups(values: Mapping[str, Hashable], there: Container[str]) -> Iterable[list[str]]:
    """Those of equal value, without what is not there."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, value in values.items():
        if name in there:
            groups[value].append(name)
    return groups.values()


def _parted(groups: Iterable[Sequence[str]], now: Mapping[str, Hashable]) -> Iterator[tuple[str, list[str]]]:
    """Members that are no longer with most of their group, each with those.

    Args:
        groups: names that had one value.
        now: the values that they have; one that is missing has a value of its own.
    """
    for parts in (list(_groups({name: now.get(name, name) for name in group}, group)) for group in groups):
        most = max(parts, key=len, default=[])
        yield from ((name, most) for part in parts if part is not most for name in part)


def _place(model: str, stage: str) -> str:
    return model if stage == "main" else f"{model}/{stage}"


def _words(use: str) -> str:
    """A use as people say it."""
    place, _, name = use.partition(": ")
    return f"{_place(*place.split('/'))} {name}"


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"
