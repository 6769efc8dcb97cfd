"""Commands as processes: exit codes, one-line errors, and the packages that they need."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from helpers import call, save, without

from gemel.bundles import reader as bundle_module
from gemel.cli import run_main
from gemel.console import Stop, check_writable, open_console, print_stage
from gemel.errors import InputError, install_hint
from gemel.runtime.ort import optimise as optimising
from gemel.runtime.ort import write_cache

LIGHT = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml", "timm")


def test_the_light_runtime_runs_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    done = call("gemel-run", bundle_folder / "bundle", "--offline", "--json", summary, **without(*LIGHT, path=tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(summary.read_text())["queries"]["a"]["processed"] == 12


def test_the_light_runtime_says_what_the_compiler_needs(bundle_folder: Path, tmp_path: Path) -> None:
    environment = without(*LIGHT, path=tmp_path)
    done = call("gemel-compile", bundle_folder / "workload.yaml", "-o", tmp_path / "b", **environment)
    assert done.returncode == 2
    assert done.stderr == (f"error: gemel-compile needs packages that are not installed: {install_hint('compiler')}\n")


@pytest.mark.parametrize("module", ["gemel.runtime", "gemel.runtime.run", "gemel.cli"])
def test_the_runtime_imports_neither_torch_nor_onnx(module: str) -> None:
    script = f"import sys, {module}; print([m for m in {LIGHT!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_compile_check_inspect(bundle_folder: Path, tmp_path: Path) -> None:
    workload, bundle = bundle_folder / "workload.yaml", tmp_path / "new"
    done = call("gemel-compile", workload, "-o", bundle, "--backend", "ort-cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Next: gemel-run {bundle}"
    assert (bundle / "device-cache").is_dir()
    done = call("gemel", "check", bundle, "--against", workload, "--json", tmp_path / "check.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "check.json").read_text())
    assert all(model["passed"] and model["relative"] < 1e-4 for model in report["models"].values())
    done = call("gemel", "inspect", bundle, "--json", tmp_path / "inspect.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "inspect.json").read_text())
    sizes = figures["bytes"]
    assert sizes["saved"] == sizes["models"] - sizes["unique"] > 0
    assert sizes["queries"] > sizes["models"]  # query c uses the model of query a
    assert figures["models"]["a"]["shared_bytes"] == sizes["saved"]
    assert figures["models"]["a"]["mode"] == "bound"


def test_check_fails_by_name(bundle_folder: Path) -> None:
    from tiny_models import tiny

    save(tiny(9), bundle_folder / "b.safetensors")
    done = call("gemel", "check", bundle_folder / "bundle", "--against", bundle_folder / "workload.yaml")
    assert done.returncode == 1
    assert "failed: b" in done.stdout


def test_bench(bundle_folder: Path, tmp_path: Path) -> None:
    done = call("gemel", "bench", bundle_folder / "bundle", "--rounds", "3", "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert {"p50", "p99"} == set(figures["swap_ms"]) == set(figures["plain_load_ms"])
    assert set(figures["latency_ratios"]) == {"a", "b"}
    assert done.stdout.splitlines()[-1] == f"Next: gemel-run {bundle_folder / 'bundle'} --memory min"
    assert figures["memory_mb"] > 0
    assert figures["plain_memory_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemel-run", "nowhere"], "error: nowhere: not a bundle (no manifest.json); gemel-compile writes one\n"),
        (["gemel-compile", "nowhere.yaml", "-o", "b"], "error: {}/nowhere.yaml: cannot be read: No such file"),
        (["gemel-run", "b", "--memory", "much"], "error: --memory: 'much' is not allowed: bytes such as 64MiB"),
        (
            ["gemel-run", "b", "--backend", "bogus"],
            "error: backend 'bogus' is not available; this version has: ort-cpu",
        ),
        (["gemel-compile", "w", "-o", "b", "--backend", "bogus"], "error: backend 'bogus' is not available"),
        (["gemel-run", "b", "--json", "."], "error: .: cannot be written: Is a directory"),
        (["gemel-run", "b", "--feed", "yard"], "error: --feed: 'yard' is not allowed: NAME=SOURCE is expected\n"),
        (["gemel-run", "b", "--policy", "fifo"], "error: --policy: 'fifo' is not allowed: one of gemel, nexus, "),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message.replace("{}/", "").format(tmp_path)), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("old")
    for path in (None, there, tmp_path / "new" / "file.json"):
        check_writable(path)
    assert there.read_text() == "old"
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(InputError, match="new: cannot be written: Is a directory"):
        check_writable(tmp_path / "new")


def test_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    console = open_console()
    print_stage(console, "files", "12 files [as] they were " + "x" * 300)
    print_stage(console, "device", "baked", began=perf_counter())
    print_stage(console, "outputs", "a", passed=False)
    assert capsys.readouterr().out.splitlines() == [
        "   files  12 files [as] they were " + "x" * 300,
        "  device     0.0 s  baked",
        " outputs  a differs",
    ]


def test_a_failed_query_fails_the_run_by_name(bundle_folder: Path, tmp_path: Path) -> None:
    broken, summary = tmp_path / "broken.mp4", tmp_path / "summary.json"
    broken.write_bytes(b"not a video")
    done = call("gemel-run", bundle_folder / "bundle", "--offline", "--feed", f"yard={broken}", "--json", summary)
    assert done.returncode == 1
    assert json.loads(summary.read_text())["queries"]["c"]["processed"] == 6
    last = done.stdout.splitlines()[-1]
    assert last.startswith("failed: a: feed 'yard': cannot open ")
    assert "; b: feed 'yard'" in last


def test_check_looks_at_the_device_cache(bundle_folder: Path) -> None:
    bundle = bundle_folder / "bundle"
    assert call("gemel-run", bundle, "--offline", "--frames", "1").returncode == 0
    (cache,) = (bundle / "device-cache").iterdir()
    done = call("gemel", "check", bundle)
    assert done.returncode == 0, done.stderr
    assert f"  device  {cache} as it was baked" in done.stdout
    data = bytearray((cache / "weights.bin").read_bytes())
    data[64] ^= 255
    (cache / "weights.bin").write_bytes(data)
    done = call("gemel", "check", bundle)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {cache}/weights.bin: content is damaged; delete the folder {cache}")


def test_stopped_while_models_are_prepared(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = []

    def interrupted(*arguments: Any) -> Any:
        prepared.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return optimise(*arguments)

    optimise = optimising.optimise
    monkeypatch.setattr(write_cache, "optimise", interrupted)
    monkeypatch.setattr(sys, "argv", ["gemel-run", str(bundle_folder / "bundle")])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        run_main()
    assert caught.value.code == 130
    assert len(prepared) == 1
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "stopped while models were prepared for this device; nothing was run"
    )
    assert signal.getsignal(signal.SIGINT) == before
    assert list((bundle_folder / "bundle" / "device-cache").iterdir()) == []


def test_the_second_signal_kills() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.event.wait(5)
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert stop.exit_code == 143


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(bundle_module, "open_bundle", full)
    monkeypatch.setattr(sys, "argv", ["gemel-run", "b"])
    with pytest.raises(SystemExit) as caught:
        run_main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: b: No space left on device\n"


def test_debug_shows_the_traceback() -> None:
    done = call("gemel-run", "nowhere", "--debug")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "command", [["gemel-compile"], ["gemel-run"], ["gemel", "inspect"], ["gemel", "check"], ["gemel", "bench"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    done = call(*command, "--help")
    assert done.returncode == 0
    assert f"{' '.join(command)} " in done.stdout.partition("Usage:")[2].partition("\n")[2]
