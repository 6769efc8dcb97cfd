"""Baselines: what a bundle and its engines were like when somebody looked, to see later whether they got worse.

A baseline outlives training: it holds names, counts and sizes, and no id of a tensor, as those change with every
weight. It travels between machines: what is timed is kept as a ratio to a plain session of the same model.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError
from .bundle import Bundle
from .engines.store import engines_in
from .manifest import Id, Name
from .program import Program, read, split

__all__ = [
    "GROWTH",
    "SCHEMA_VERSION",
    "SLOWDOWN",
    "Baseline",
    "Difference",
    "baseline_of",
    "compare",
    "measure_latency",
    "read_baseline",
    "write_baseline",
]

SCHEMA_VERSION = "1.0"
GROWTH = 0.01
"""By how much of its size an engine may grow. One program's engines come out with the same size every time, to the
byte, so that this is no room for chance: it lets pass what is not worth a look."""
SLOWDOWN = 0.25
"""By how much of it the ratio of run times may grow."""

_ROUNDS = 30
"""Runs of each model that are timed."""
_FLOATS = frozenset({1, 10, 11, 16})
"""TensorProto's float, float16, double and bfloat16."""

Use = Annotated[str, Field(pattern=r"^[^/:]+/[^/:]+: .+$")]
"""``model/stage: name`` of an initializer in the stage's ONNX file."""
Size = Annotated[int, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StageBaseline(_Value):
    program: Id
    graph: Id
    """Digest of the program without the values of its constant floats, which training may change."""
    operators: dict[str, Size]
    """How many nodes the program has of each."""
    inputs: Size
    """Weights that are inputs."""


class ModelBaseline(_Value):
    mode: Literal["bound", "constant"]
    stages: dict[Name, StageBaseline]


class SharedBaseline(_Value):
    bytes: Size
    uses: tuple[Use, ...]


class EngineBaseline(_Value):
    bytes: Size
    layers: Size
    inputs: Size


class EnginesBaseline(_Value):
    library: str
    version: str
    targets: tuple[str, ...]
    device: str | None = None
    engines: dict[Name, dict[Name, EngineBaseline]]
    """By model and stage."""


class Baseline(_Value):
    schema_version: str = SCHEMA_VERSION
    unique_bytes: Size
    """Of all weights, each distinct tensor counted once."""
    models: dict[Name, ModelBaseline]
    shared: tuple[SharedBaseline, ...]
    """Tensors that are used in more than one place."""
    engines: tuple[EnginesBaseline, ...]
    latency: dict[Name, Annotated[float, Field(gt=0)]] = {}
    """Run time of a model on ort-cpu, as a multiple of a plain ONNX Runtime session's; empty if it was not measured."""


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


def baseline_of(bundle: Bundle, latency: Mapping[str, float] | None = None) -> Baseline:
    """What a bundle is like now, with the engines that lie in its folder.

    Args:
        bundle: an open bundle.
        latency: see :func:`measure_latency`; left out where it was not measured.

    Raises:
        BundleError: an engine is damaged.
        BackendError: a graph that cannot be taken apart.
    """
    content = bundle.manifest
    models: dict[str, ModelBaseline] = {}
    uses: dict[str, list[str]] = defaultdict(list)
    for name, model in content.models.items():
        stages = {}
        for stage, spec in model.stages.items():
            program = split(read(bundle.file(spec.file).read_bytes()))
            stages[stage] = _stage(program)
            for weight, tensor in zip(program.weights, spec.weights, strict=True):
                uses[tensor].append(f"{name}/{stage}: {weight}")
        models[name] = ModelBaseline(mode=model.mode, stages=stages)
    shared = [
        SharedBaseline(bytes=content.tensors[tensor].length, uses=tuple(sorted(places)))
        for tensor, places in uses.items()
        if len(places) > 1
    ]
    return Baseline(
        unique_bytes=sum(tensor.length for tensor in content.tensors.values()),
        models=models,
        shared=tuple(sorted(shared, key=lambda each: each.uses)),
        engines=tuple(
            EnginesBaseline(
                library=built.library,
                version=built.version,
                targets=built.targets,
                device=built.device,
                engines={
                    name: {
                        stage: EngineBaseline(**built.engines[spec.program].model_dump())
                        for stage, spec in model.stages.items()
                        if spec.program in built.engines
                    }
                    for name, model in content.models.items()
                },
            )
            for built in sorted(engines_in(bundle), key=lambda each: each.title)
        ),
        latency=latency or {},
    )


def measure_latency(bundle: Bundle, progress: Callable[[str], None] = lambda model: None) -> dict[str, float]:
    """CPU time of a run of each model on one thread, as a multiple of a plain ONNX Runtime session's in the same run.

    Args:
        bundle: an open bundle; its device cache is made if it is missing.
        progress: told of each model before it is measured.

    Raises:
        BackendError: a model cannot be run.
    """
    from .bench import latency

    found = {}
    for name, model in bundle.manifest.models.items():
        progress(name)
        ratio, _, _ = latency(bundle.path, name, bundle.file(model.stages["main"].file), _ROUNDS)
        found[name] = float(f"{ratio:.4g}")
    return found


def read_baseline(path: Path) -> Baseline:
    """
    Raises:
        InputError: the file cannot be read, is no baseline, or is of another version.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: a JSON object is expected")
    version = document.get("schema_version")
    if str(version).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise InputError(
            f"{path}: schema_version is {version!r}, this gemel reads {SCHEMA_VERSION!r}: gemel check --write-baseline"
            " writes it anew"
        )
    try:
        return Baseline.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {field}: {first['msg']}") from error


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline as JSON, an old one staying whole until the new one is.

    Raises:
        InputError: the file cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be written: it is not a plain file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".baseline-") as folder:
            made = Path(folder) / path.name
            made.write_text(baseline.model_dump_json(indent=1) + "\n", encoding="utf-8")
            made.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def compare(before: Baseline, now: Baseline) -> list[Difference]:
    """What differs, in the order models, weights, sharing, engines and latency.

    Worse are: a model, stage or engine that is missing, another mode or another program, fewer weights that are inputs,
    more unique bytes, a tensor or a program that is no longer shared, an engine with more layers or larger by more
    than :data:`GROWTH`, and a run slower by more than :data:`SLOWDOWN`.

    Args:
        before: the baseline.
        now: what there is.
    """
    return [*_models(before, now), *_weights(before, now), *_engines(before, now), *_latency(before, now)]


def _stage(program: Program) -> StageBaseline:
    model = read(program.proto)
    operators = Counter(node.op_type for node in model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS:
            for field in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(field)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()[:32]
    return StageBaseline(
        program=program.id, graph=digest, operators=dict(sorted(operators.items())), inputs=len(program.weights)
    )


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
            yield from _sizes(old, new)
    known = {(each.library, each.targets, each.device) for each in before.engines}
    for new in now.engines:
        if (new.library, new.targets, new.device) not in known:
            yield Difference(f"engines of {new.library}", f"{_title(new)} is not in the baseline", "changed")


def _sizes(old: EnginesBaseline, new: EnginesBaseline) -> Iterator[Difference]:
    for model, stages in old.engines.items():
        for stage, before in stages.items():
            now = new.engines.get(model, {}).get(stage)
            # A model that is missing was named before.
            if now is None or now == before:
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
