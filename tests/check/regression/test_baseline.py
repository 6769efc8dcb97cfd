"""Baselines: equal after retraining, and differences that name what got worse."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import query, save, swap_for_a_pipe
from tiny_models import TinyNet, tiny

from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.bench import bench
from gemel.check.regression import baseline as baseline_module
from gemel.check.regression.baseline import (
    Baseline,
    EnginesBaseline,
    ModelBaseline,
    SharedBaseline,
    baseline_of,
    measure_latency,
    read_baseline,
    write_baseline,
)
from gemel.check.regression.regressions import compare_baselines
from gemel.compiler import compile_workload
from gemel.errors import InputError
from gemel.workload import Workload

PROGRAM, GRAPH = "a" * 32, "b" * 32
SHARED = ("head.bias", "head.weight", "pointwise.weight", "stem.weight")


def lines(before: Baseline, now: Baseline, kind: str) -> list[str]:
    return [str(each) for each in compare_baselines(before, now) if each.kind == kind]


def stage(**changes: Any) -> dict[str, Any]:
    return {"program": PROGRAM, "graph": GRAPH, "operators": {"Conv": 47, "Relu": 3}, "inputs": 94, **changes}


def engines(size: int | None = 1_000_000, layers: int = 50, inputs: int = 94, **changes: Any) -> dict[str, Any]:
    engine = {"bytes": size, "layers": layers, "inputs": inputs}
    built = {
        "library": "tensorrt-rtx",
        "version": "1.7",
        "targets": ["sm86", "sm89"],
        "engines": {"a": {"main": engine}},
    }
    return {**built, **changes}


def made(**changes: Any) -> Baseline:
    """Return a baseline of models a, b, c and d, which run one program."""
    models = {name: {"mode": "bound", "stages": {"main": stage()}} for name in "abcd"}
    document = {"unique_bytes": 1000, "models": models, "shared": [], "engines": [], **changes}
    return Baseline.model_validate(document)


def shared(*groups: str) -> list[dict[str, Any]]:
    """Return shared tensors, one per group of models: ``abc`` for models a, b and c."""
    return [
        {"bytes": 1_600_000, "uses": [f"{name}/main: w{index}" for name in group]} for index, group in enumerate(groups)
    ]


@pytest.fixture
def compiled(tmp_path: Path, workload_in: Callable[..., Workload]) -> Callable[..., Bundle]:
    """Return a function that compiles modules, given by model name, into a bundle."""

    def compile_(name: str, **models: TinyNet) -> Bundle:
        for model, net in models.items():
            save(net, tmp_path / f"{model}.safetensors")
        queries = [query(model) for model in models]
        for each, net in zip(queries, models.values(), strict=True):
            each["model"]["args"] = {"num_classes": net.head.out_features}
        workload = workload_in(*queries)
        return open_bundle(compile_workload(workload, tmp_path / name).path)

    return compile_


def test_of_a_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    found = baseline_of(opened)
    (program,) = opened.manifest.programs
    assert found.models.keys() == {"a", "b"}
    for model in found.models.values():
        spec = model.stages["main"]
        assert (spec.program, spec.inputs) == (program, 10)
        # Three convolutions, and two kept BatchNorms, behind the shared kernels that are not depthwise.
        assert spec.operators == {"Clip": 1, "Conv": 5, "Gemm": 1, "ReduceMean": 1, "Relu": 2}
    assert [each.uses for each in found.shared] == [(f"a/main: {name}", f"b/main: {name}") for name in SHARED]
    assert [each.bytes for each in found.shared] == [12, 384, 2048, 1728]
    assert found.unique_bytes == sum(tensor.length for tensor in opened.manifest.tensors.values())
    assert (found.engines, found.latency) == ((), {})


def test_a_round_trip(bundle: Path, tmp_path: Path) -> None:
    found = baseline_of(open_bundle(bundle), {"a": 1.01, "b": 0.99})
    file = tmp_path / "new" / "baseline.json"
    for _ in range(2):
        write_baseline(file, found)
        assert read_baseline(file) == found
        assert compare_baselines(read_baseline(file), found) == []
    assert list(file.parent.iterdir()) == [file]


def test_training_changes_nothing(bundle: Path, compiled: Callable[..., Bundle]) -> None:
    before = open_bundle(bundle)
    first = tiny(5)
    after = compiled("after", a=first, b=tiny(6, kernels_of=first))
    assert not before.manifest.tensors.keys() & after.manifest.tensors.keys()
    assert compare_baselines(baseline_of(before), baseline_of(after)) == []


def test_trained_constants(compiled: Callable[..., Bundle]) -> None:
    """Check that retraining a one-element bias, which is a constant of the program, is only a change."""
    before, after = (baseline_of(compiled(f"{seed}", a=tiny(seed, num_classes=1))) for seed in (1, 2))
    assert before.models["a"].stages["main"].program != after.models["a"].stages["main"].program
    assert [(each.kind, str(each)) for each in compare_baselines(before, after)] == [
        ("changed", "a: the same program but for its constants")
    ]


def test_a_layer_that_is_no_longer_shared(bundle: Path, compiled: Callable[..., Bundle]) -> None:
    before = baseline_of(open_bundle(bundle))
    first = tiny(0)
    second = tiny(1, kernels_of=first)
    second.head.weight.data += 1
    after = baseline_of(compiled("after", a=first, b=second))
    assert lines(before, after, "worse") == [
        "weights: 6,604 unique bytes, baseline 6,220",
        "b head.weight: was shared with a head.weight (384 bytes), and no longer is",
    ]
    assert lines(after, before, "worse") == []
    assert lines(after, before, "better") == [
        "weights: 6,220 unique bytes, baseline 6,604",
        "sharing: tensors in more places than in the baseline: 1, 384 bytes",
    ]


def test_a_kernel_that_is_no_longer_shared_changes_its_programs(bundle: Path, compiled: Callable[..., Bundle]) -> None:
    first = tiny(0)
    second = tiny(1, kernels_of=first)
    second.pointwise.weight.data += 1
    after = baseline_of(compiled("after", a=first, b=second))
    worse = lines(baseline_of(open_bundle(bundle)), after, "worse")
    assert worse == [
        "a: another program: Conv: 4, baseline 5; weights as inputs: 9, baseline 10",
        "b: another program: Conv: 4, baseline 5; weights as inputs: 9, baseline 10",
        worse[2],
        "b pointwise.weight: was shared with a pointwise.weight (2,048 bytes), and no longer is",
    ]
    assert worse[2].startswith("weights: ")


@pytest.mark.parametrize(
    ("before", "now", "worse", "gained"),
    [
        (["ab"], ["ab"], [], 0),
        (["ab"], [], ["b w0: was shared with a w0 (1.6 MB), and no longer is"], 0),
        (["abc"], ["bc"], ["a w0: was shared with b w0 and 1 more (1.6 MB), and no longer is"], 0),
        (
            ["abcd"],
            ["ab"],
            [
                "c w0: was shared with a w0 and 1 more (1.6 MB), and no longer is",
                "d w0: was shared with a w0 and 1 more (1.6 MB), and no longer is",
            ],
            0,
        ),
        (["ab"], ["abc"], [], 1),
        ([], ["ab", "cd"], [], 2),
        (["ab", "cd"], ["ab"], ["d w1: was shared with c w1 (1.6 MB), and no longer is"], 0),
    ],
)
def test_sharing(before: list[str], now: list[str], worse: list[str], gained: int) -> None:
    old, new = made(shared=shared(*before)), made(shared=shared(*now))
    assert lines(old, new, "worse") == worse
    size = f"{gained * 1.6:.1f} MB"
    assert lines(old, new, "better") == (
        [f"sharing: tensors in more places than in the baseline: {gained}, {size}"] if gained else []
    )
    assert lines(old, new, "changed") == []


def test_two_tensors_made_of_one() -> None:
    old = made(shared=shared("abcd"))
    new = made(
        shared=[{"bytes": 8, "uses": ["a/main: w0", "b/main: w0"]}, {"bytes": 8, "uses": ["c/main: w0", "d/main: w0"]}]
    )
    assert [each.name for each in compare_baselines(old, new)] == ["c w0", "d w0"]


def test_sharing_inside_a_stage() -> None:
    uses = ["a/box: fc6", "a/main: layer4.2.conv1.weight"]
    worse = lines(made(shared=[{"bytes": 100_000, "uses": uses}]), made(), "worse")
    assert worse == ["a layer4.2.conv1.weight: was shared with a/box fc6 (0.1 MB), and no longer is"]


def test_models_that_come_and_go() -> None:
    old = made(shared=shared("abc"), engines=[engines()])
    content = old.model_dump()
    content["models"]["e"] = content["models"].pop("a")
    content["shared"][0]["uses"] = content["shared"][0]["uses"][1:]
    content["engines"][0]["engines"] = {}
    new = Baseline.model_validate(content)
    assert lines(old, new, "worse") == ["a: is not in the bundle"]
    assert lines(old, new, "changed") == ["e: is not in the baseline"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"operators": {"Conv": 52, "Pad": 5}},
            "a: another program: Conv: 52, baseline 47; Pad: 5, baseline 0; Relu: 0, baseline 3",
        ),
        ({"inputs": 93}, "a: another program: weights as inputs: 93, baseline 94"),
        ({"graph": "c" * 32}, "a: another program: the same operators, with other attributes, shapes or order"),
    ],
)
def test_programs(change: dict[str, Any], expected: str) -> None:
    old = made()
    models = {**old.models, "a": ModelBaseline.model_validate({"mode": "bound", "stages": {"main": stage(**change)}})}
    assert lines(old, old.model_copy(update={"models": models}), "worse") == [expected]


def test_stages_and_modes() -> None:
    old = made()
    box = ModelBaseline.model_validate(
        {"mode": "constant", "stages": {"main": stage(), "box": stage(program="d" * 32)}}
    )
    new = old.model_copy(update={"models": {**old.models, "a": box}})
    assert lines(old, new, "worse") == ["a: mode constant, baseline bound", "a/box: is not in the baseline"]
    assert lines(new, old, "worse") == ["a: mode bound, baseline constant", "a/box: is not in the bundle"]


def test_a_program_of_two_models_that_becomes_two() -> None:
    old = made()
    own = ModelBaseline.model_validate({"mode": "bound", "stages": {"main": stage(program="c" * 32)}})
    new = old.model_copy(update={"models": {**old.models, "c": own}})
    assert lines(old, new, "worse") == ["c: was one program with a and 2 more, and no longer is"]
    assert lines(old, new, "changed") == ["c: the same program but for its constants"]
    assert lines(new, old, "worse") == []


@pytest.mark.parametrize(
    ("now", "kind", "expected"),
    [
        ({}, "worse", None),
        ({"size": 1_010_001}, "worse", "bytes: 1,010,001, baseline 1,000,000 (+1.00%)"),
        ({"size": 1_010_000}, "changed", "bytes: 1,010,000, baseline 1,000,000 (+1.00%)"),
        ({"size": 990_000}, "better", "bytes: 990,000, baseline 1,000,000 (-1.00%)"),
        ({"layers": 51}, "worse", "layers: 51, baseline 50"),
        ({"layers": 49}, "better", "layers: 49, baseline 50"),
        ({"inputs": 93}, "worse", "weights as inputs: 93, baseline 94"),
        ({"inputs": 95}, "changed", "weights as inputs: 95, baseline 94"),
        (
            {"size": 900_000, "layers": 60},
            "worse",
            "bytes: 900,000, baseline 1,000,000 (-10.00%); layers: 60, baseline 50",
        ),
    ],
)
def test_engines(now: dict[str, int], kind: str, expected: str | None) -> None:
    old, new = made(engines=[engines()]), made(engines=[engines(**now)])
    found = [(each.kind, str(each)) for each in compare_baselines(old, new)]
    name = "engine of a: tensorrt-rtx for sm86 and sm89"
    assert found == ([(kind, f"{name}: {expected}")] if expected else [])


@pytest.mark.parametrize(
    ("now", "kind", "expected"),
    [
        ([], "worse", "there are none for sm86 and sm89; the baseline has them"),
        ([engines(targets=["sm86"])], "worse", "there are none for sm89; the baseline has them"),
        ([engines(library="tensorrt")], "worse", "there are none for sm86 and sm89; the baseline has them"),
        (
            [engines(size=9_000_000, version="1.8")],
            "changed",
            "bytes and layers are not compared: version 1.8 for sm86 and sm89, baseline version 1.7 for sm86 and sm89",
        ),
        (
            [engines(size=9_000_000, targets=["sm86", "sm89", "sm120"])],
            "changed",
            "bytes and layers are not compared: version 1.7 for sm86 and sm89 and sm120, baseline version 1.7 for sm86"
            " and sm89",
        ),
        (
            [engines(targets=["sm86"]), engines(targets=["sm89"], device="RTX 4090")],
            "changed",
            "bytes and layers are not compared: version 1.7 for sm86, version 1.7 for sm89 on RTX 4090, baseline"
            " version 1.7 for sm86 and sm89",
        ),
        (
            [engines(size=9_000_000, device="RTX 4090")],
            "changed",
            "bytes and layers are not compared: version 1.7 for sm86 and sm89 on RTX 4090, baseline version 1.7 for"
            " sm86 and sm89",
        ),
        # Engines of an older version may lie in the folder too.
        ([engines(size=9_000_000, version="1.6"), engines()], "", ""),
    ],
)
def test_sets_of_engines(now: list[dict[str, Any]], kind: str, expected: str) -> None:
    found = compare_baselines(made(engines=[engines()]), made(engines=now))
    assert [(each.kind, str(each)) for each in found[:1]] == (
        [(kind, f"engines of tensorrt-rtx: {expected}")] if kind else []
    )
    assert all(each.kind == "changed" and each.what.endswith("is not in the baseline") for each in found[1:])


def test_engines_that_are_new() -> None:
    new = made(engines=[engines(targets=["sm120"])])
    assert lines(made(), new, "changed") == ["engines of tensorrt-rtx: version 1.7 for sm120 is not in the baseline"]


@pytest.mark.parametrize(
    ("now", "kind", "what"),
    [
        ({"a": 1.25}, None, None),
        ({"a": 1.26}, "worse", "latency of a: a run takes 1.26 of a plain session's time, baseline 1"),
        ({"a": 0.79}, "better", "latency of a: a run takes 0.79 of a plain session's time, baseline 1"),
        ({"a": 0.81, "b": 9}, None, None),
        ({}, "changed", "latency: not compared: it was not measured now"),
    ],
)
def test_latency(now: dict[str, float], kind: str | None, what: str | None) -> None:
    found = compare_baselines(made(latency={"a": 1.0}), made(latency=now))
    assert [(each.kind, str(each)) for each in found] == ([(kind, what)] if kind else [])


def test_measured_latency(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    opened = open_bundle(bundle)
    monkeypatch.setattr(baseline_module, "_ROUNDS", 4)
    found = measure_latency(opened, told.append)
    assert told == list(found) == ["a", "b"]
    assert all(0.1 < ratio < 10 for ratio in found.values())
    monkeypatch.setattr(bench, "latency_ratio", lambda path, model, file, rounds: (1.23456, 1, 1))
    assert measure_latency(opened) == {"a": 1.235, "b": 1.235}


def test_engines_of_a_bundle(bundle: Path) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed; there is none for this machine's CPU"
    )
    from gemel.runtime.engines.library import find_library
    from gemel.runtime.engines.store import build_engines

    opened = open_bundle(bundle)
    library = find_library("tensorrt-rtx")
    for targets in (["sm86", "sm89"], ["sm120"]):
        build_engines(opened, library, targets)
    found = baseline_of(opened).engines
    assert [each.targets for each in found] == [("sm120",), ("sm86", "sm89")]
    for each in found:
        assert isinstance(each, EnginesBaseline)
        assert (each.library, each.version) == ("tensorrt-rtx", library.version)
        assert each.engines["a"] == each.engines["b"]
        assert each.engines["a"]["main"].inputs == 10


GOOD = made(shared=shared("ab"), engines=[engines()]).model_dump(mode="json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[" * 100_000, "is not JSON: "),
        (b"[]", "a JSON object is expected"),
        (b"{}", "schema_version is None, this gemel reads '1.0': gemel check --write-baseline writes it anew"),
        ({**GOOD, "schema_version": "2.0"}, "schema_version is '2.0', this gemel reads '1.0': gemel check --write-"),
        ({**GOOD, "unique_bytes": -1}, "unique_bytes: Input should be greater than or equal to 0"),
        ({**GOOD, "models": {"../a": {}}}, "models.../a.[key]: String should match pattern"),
        ({**GOOD, "models": {"a": {"mode": "fast", "stages": {}}}}, "models.a.mode: Input should be 'bound' or"),
        ({**GOOD, "shared": [{"bytes": 1, "uses": ["w"]}]}, "shared.0.uses.0: String should match pattern"),
        ({**GOOD, "engines": [engines(size=None)]}, "engines.0.engines.a.main.bytes: Input should be a valid integer"),
        ({**GOOD, "latency": {"a": 0}}, "latency.a: Input should be greater than 0"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes | dict[str, Any], message: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError) as caught:
        read_baseline(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps({**GOOD, "schema_version": "1.7", "more": 1}))
    assert read_baseline(file).shared == (SharedBaseline.model_validate(GOOD["shared"][0]),)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read: No such file or directory"):
        read_baseline(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_baseline(tmp_path)


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, made())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for owner, step in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, full)
            with pytest.raises(InputError, match="cannot be written: No space left on device"):
                write_baseline(file, made(unique_bytes=5))
    assert read_baseline(file) == made()
    assert list(tmp_path.iterdir()) == [file]
    link = tmp_path / "link.json"
    link.symlink_to(file)
    write_baseline(link, made(unique_bytes=5))
    assert link.is_symlink() and read_baseline(file).unique_bytes == 5
    swap_for_a_pipe(file)
    for place in (file, tmp_path):
        with pytest.raises(InputError, match="cannot be written: it is not a plain file"):
            write_baseline(place, made())
    assert file.is_fifo()


def test_neither_torch_nor_onnx_is_imported() -> None:
    import subprocess

    script = (
        "import sys, gemel.check.regression.baseline\n"
        "print([m for m in ('torch', 'onnx', 'tensorrt_rtx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_stage_that_has_no_engine_any_more_is_named() -> None:
    before, now = made(engines=[engines()]), made(engines=[engines(engines={"a": {}})])
    assert lines(before, now, "worse") == ["engine of a: tensorrt-rtx has none now"]
    assert not lines(now, before, "worse")
