"""Engines and baselines in ``gemel-compile --target``, ``gemel inspect`` and ``gemel check``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import save
from tiny_models import tiny

from gemel.bundles.reader import open_bundle
from gemel.check.regression import baseline as baseline_module
from gemel.errors import install_hint
from gemel.runtime.engines.library import find_library
from gemel.runtime.engines.store import build_engines

Call = Callable[..., tuple[int, str, str]]
TARGETS = ("--backend", "tensorrt-rtx", "--target", "sm89, SM86")


@pytest.fixture
def rtx() -> str:
    """Return the version of TensorRT for RTX, or skip the test where it is not installed."""
    module = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT for RTX is not installed; there is none for this machine's CPU"
    )
    return str(module.__version__)


@pytest.fixture
def workload(bundle_folder: Path) -> Path:
    return bundle_folder / "workload.yaml"


@pytest.fixture
def with_engines(rtx: str, bundle: Path) -> Path:
    build_engines(open_bundle(bundle), find_library("tensorrt-rtx"), ["sm86", "sm89"])
    return bundle


def lines(out: str, stage: str) -> list[str]:
    return [line.strip()[len(stage) :].strip() for line in out.splitlines() if line.strip().startswith(stage)]


def test_compile(rtx: str, gemel: Call, workload: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "new"
    code, out, err = gemel("compile", workload, "-o", bundle, *TARGETS)
    assert (code, err) == (0, "")
    (folder,) = (bundle / "device-cache").iterdir()
    size = sum(path.stat().st_size for path in folder.glob("*.engine"))
    (line,) = lines(out, "engines")
    assert line.partition(" s  ")[2] == (
        f"tensorrt-rtx {rtx} for sm86, sm89: 1 programs with 10 weights as inputs, {size / 1e6:.1f} MB in {folder}"
    )
    assert out.splitlines()[-1] == f"Next: gemel-run {bundle}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--target", "sm86"],
            "error: --target is for engines of devices that are not here: give --backend tensorrt-rtx",
        ),
        (["--target", "sm86", "--backend", "ort-cpu"], "error: --target is for engines of devices that are not here"),
        (["--target", "sm86,sm87", "--backend", "tensorrt-rtx"], "error: target 'sm87': tensorrt-rtx "),
        (["--target", "sm90", "--backend", "tensorrt-rtx"], "error: target 'sm90': tensorrt-rtx "),
        (["--target", "", "--backend", "tensorrt-rtx"], "error: target '': tensorrt-rtx "),
        (["--target", "sm86,", "--backend", "tensorrt-rtx"], "error: target '': tensorrt-rtx "),
    ],
)
def test_targets_that_are_not_allowed(
    rtx: str, gemel: Call, workload: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    code, _, err = gemel("compile", workload, "-o", tmp_path / "new", *flags)
    assert code == 2
    assert err.startswith(message) and err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


def test_compile_without_the_library(
    gemel: Call, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    code, _, err = gemel("compile", workload, "-o", tmp_path / "new", *TARGETS)
    assert code == 1
    assert err == (
        f"error: tensorrt-rtx is not installed: {install_hint('tensorrt-rtx')}; --backend ort-cpu runs without\n"
    )
    assert not (tmp_path / "new").exists()


def test_inspect(rtx: str, gemel: Call, with_engines: Path, tmp_path: Path) -> None:
    code, out, err = gemel("inspect", with_engines, "--json", tmp_path / "inspect.json")
    assert (code, err) == (0, "")
    (engines,) = json.loads((tmp_path / "inspect.json").read_text())["engines"]
    (folder,) = (with_engines / "device-cache").iterdir()
    assert (engines["folder"], engines["library"], engines["version"]) == (str(folder), "tensorrt-rtx", rtx)
    assert (engines["targets"], engines["device"]) == (["sm86", "sm89"], None)
    ((program, engine),) = engines["programs"].items()
    assert engine["bytes"] == engines["bytes"] == (folder / f"{program}.engine").stat().st_size
    assert (engine["models"], engine["mode"], engine["inputs"]) == (["a", "b"], "bound", 10)
    assert f"engines: tensorrt-rtx {rtx} for sm86, sm89" in out
    assert (engine["bound_ms"], engine["refit_ms"], engine["swap_ms"]) == (None, None, None)
    numbers = ["10", str(engine["layers"]), f"{engine['bytes'] / 1e6:.2f}"]
    cells = [program[:12], "a,", "b", "bound", *numbers, "not", "measured"]
    assert cells in [line.split() for line in out.splitlines()]


def test_inspect_without_engines(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    code, out, _ = gemel("inspect", bundle, "--json", tmp_path / "inspect.json")
    assert code == 0 and "engines:" not in out
    assert json.loads((tmp_path / "inspect.json").read_text())["engines"] == []


def test_check_looks_at_engines(rtx: str, gemel: Call, with_engines: Path, tmp_path: Path) -> None:
    (folder,) = (with_engines / "device-cache").iterdir()
    code, out, _ = gemel("check", with_engines, "--json", tmp_path / "check.json")
    assert code == 0
    assert lines(out, "engines") == [f"{folder} as it was built: tensorrt-rtx {rtx} for sm86, sm89"]
    assert json.loads((tmp_path / "check.json").read_text())["engines"] == [str(folder)]
    (engine,) = folder.glob("*.engine")
    data = bytearray(engine.read_bytes())
    data[-1] ^= 255
    engine.write_bytes(data)
    for command in ("check", "inspect"):
        code, _, err = gemel(command, with_engines)
        assert code == 2
        assert err == (
            f"error: {engine}: content is damaged; delete its folder, engines are built again when they are needed\n"
        )


def test_a_baseline_of_what_has_not_changed(gemel: Call, with_engines: Path, tmp_path: Path) -> None:
    file, report = tmp_path / "base.json", tmp_path / "check.json"
    code, out, err = gemel("check", with_engines, "--write-baseline", file)
    assert (code, err) == (0, "")
    assert lines(out, "baseline") == [f"{file}: models: 2, shared tensors: 4, sets of engines: 1"]
    assert out.splitlines()[-1] == f"Next: gemel bench {with_engines}"
    code, out, err = gemel("check", with_engines, "--baseline", file, "--json", report)
    assert (code, err) == (0, "")
    assert lines(out, "baseline") == ["nothing is worse than in the baseline ok"]
    assert json.loads(report.read_text())["baseline"] == []


def test_a_layer_that_is_no_longer_shared_fails_by_name(
    gemel: Call, with_engines: Path, workload: Path, tmp_path: Path
) -> None:
    file, report = tmp_path / "base.json", tmp_path / "check.json"
    assert gemel("check", with_engines, "--write-baseline", file)[0] == 0
    other = tiny(1, kernels_of=tiny(0))
    other.head.weight.data += 1
    save(other, workload.parent / "b.safetensors")
    assert gemel("compile", workload, "-o", with_engines, *TARGETS)[0] == 0
    code, out, _ = gemel("check", with_engines, "--baseline", file, "--json", report)
    assert code == 1
    assert lines(out, "baseline") == [
        "weights: 6,604 unique bytes, baseline 6,220 differs",
        "b head.weight: was shared with a head.weight (384 bytes), and no longer is differs",
    ]
    assert out.splitlines()[-1] == "failed: weights, b head.weight"
    assert json.loads(report.read_text())["baseline"][1] == {
        "name": "b head.weight",
        "what": "was shared with a head.weight (384 bytes), and no longer is",
        "kind": "worse",
    }
    # Sharing the tensor again is better than this new baseline.
    assert gemel("check", with_engines, "--write-baseline", file)[0] == 0
    save(tiny(1, kernels_of=tiny(0)), workload.parent / "b.safetensors")
    assert gemel("compile", workload, "-o", with_engines, *TARGETS)[0] == 0
    code, out, _ = gemel("check", with_engines, "--baseline", file)
    assert code == 0
    assert lines(out, "baseline") == [
        "weights: 6,220 unique bytes, baseline 6,604",
        "sharing: tensors in more places than in the baseline: 1, 384 bytes",
        "nothing is worse than in the baseline; --write-baseline keeps the improvements ok",
    ]


def test_a_bloated_engine_fails_by_name(gemel: Call, with_engines: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    assert gemel("check", with_engines, "--write-baseline", file)[0] == 0
    document = json.loads(file.read_text())
    engine = document["engines"][0]["engines"]["b"]["main"]
    size = engine["bytes"]
    engine["bytes"] = size * 9 // 10
    file.write_text(json.dumps(document))
    code, out, _ = gemel("check", with_engines, "--baseline", file)
    assert code == 1
    assert lines(out, "baseline") == [
        f"engine of b: tensorrt-rtx for sm86 and sm89: bytes: {size:,}, baseline {size * 9 // 10:,} (+11.11%) differs"
    ]
    assert out.splitlines()[-1] == "failed: engine of b"


def test_engines_that_were_not_built_fail_by_name(gemel: Call, with_engines: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    assert gemel("check", with_engines, "--write-baseline", file)[0] == 0
    shutil.rmtree(with_engines / "device-cache")
    code, out, _ = gemel("check", with_engines, "--baseline", file)
    assert code == 1
    assert lines(out, "baseline") == [
        "engines of tensorrt-rtx: there are none for sm86 and sm89; the baseline has them differs"
    ]
    assert out.splitlines()[-1] == "failed: engines of tensorrt-rtx"


def test_latency(gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = iter((1.0, 1.2, 1.3))
    monkeypatch.setattr(baseline_module, "measure_latency", lambda *_: {"a": next(ratios)})
    file = tmp_path / "base.json"
    code, out, _ = gemel("check", bundle, "--write-baseline", file, "--latency")
    assert code == 0
    assert lines(out, "latency") == ["a: 1.000 of a plain session's CPU time"]
    assert json.loads(file.read_text())["latency"] == {"a": 1.0}
    code, out, _ = gemel("check", bundle, "--baseline", file, "--latency")
    assert code == 0
    code, out, _ = gemel("check", bundle, "--baseline", file, "--latency")
    assert code == 1
    assert out.splitlines()[-1] == "failed: latency of a"
    code, out, _ = gemel("check", bundle, "--baseline", file)
    assert code == 0
    assert lines(out, "baseline")[0] == "latency: not compared: it was not measured now"


def test_nothing_is_measured_by_default(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    assert gemel("check", bundle, "--write-baseline", tmp_path / "base.json")[0] == 0
    assert gemel("check", bundle, "--baseline", tmp_path / "base.json")[0] == 0
    assert json.loads((tmp_path / "base.json").read_text())["latency"] == {}
    assert not (bundle / "device-cache").exists()


def test_no_baseline_of_a_bundle_that_fails(gemel: Call, bundle_folder: Path, tmp_path: Path) -> None:
    save(tiny(9), bundle_folder / "b.safetensors")
    flags = ("--against", bundle_folder / "workload.yaml", "--write-baseline", tmp_path / "base.json")
    assert gemel("check", bundle_folder / "bundle", *flags)[0] == 1
    assert not (tmp_path / "base.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--baseline", "none.json"], "error: none.json: cannot be read: No such file or directory\n"),
        (["--baseline", "bad.json"], "error: bad.json: unique_bytes: Field required\n"),
        (
            ["--baseline", "base.json", "--latency"],
            "error: --latency: base.json has no latencies; write it again with --latency\n",
        ),
        (
            ["--latency"],
            "error: --latency: --baseline FILE or --write-baseline FILE is needed with it\n",
        ),
        (["--write-baseline", "."], "error: .: cannot be written: Is a directory\n"),
        (
            ["--write-baseline", "new.json", "--baseline", "base.json"],
            "error: --write-baseline: cannot be given with --baseline, which reads an earlier file\n",
        ),
    ],
)
def test_bad_input(
    gemel: Call, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text('{"schema_version": "1.0"}')
    good: dict[str, Any] = {"schema_version": "1.0", "unique_bytes": 0, "models": {}, "shared": [], "engines": []}
    Path("base.json").write_text(json.dumps(good))
    code, out, err = gemel("check", bundle, *flags)
    assert (code, out, err) == (2, "", message)
