"""Files given to the wrong command, and what gemel-compile says beside errors: feeds, inputs, memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]
PROFILE = Path(__file__).parents[2] / "examples" / "profiles" / "paper.yaml"


@pytest.mark.parametrize("command", ["run", "inspect", "check", "bench", "profile"])
def test_a_workload_is_no_bundle(command: str, gemel: Call, bundle_folder: Path) -> None:
    workload = bundle_folder / "workload.yaml"
    code, out, err = gemel(command, workload)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {workload}: is a workload, not the folder of a bundle; first compile it: gemel-compile {workload} -o"
        " bundle/\n"
    )


@pytest.mark.parametrize("merged", [False, True])
def test_the_folder_of_a_workload_is_no_bundle(merged: bool, gemel: Call, bundle_folder: Path) -> None:
    workload = bundle_folder / "workload.yaml"
    if merged:
        (bundle_folder / "merged").mkdir()
        workload = workload.rename(bundle_folder / "merged" / "workload.yaml")
    code, out, err = gemel("run", bundle_folder)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {bundle_folder}: is the folder of a workload, not of a bundle; first compile it: gemel-compile"
        f" {workload} -o bundle/\n"
    )


def test_other_files_are_no_bundle(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0\xff")
    for path, words in (
        (
            bundle / "manifest.json",
            f"is the manifest of a bundle, not the folder of a bundle; give its folder, {bundle}",
        ),
        (bundle / "a.onnx", "is an ONNX file, not the folder of a bundle; gemel init "),
        (PROFILE, f"is a profile, not the folder of a bundle; gemel simulate {PROFILE} takes it"),
        (tmp_path / "x.bin", "is a file of another kind, not the folder of a bundle; gemel-compile WORKLOAD.YAML"),
    ):
        code, _, err = gemel("run", path)
        assert code == 2
        assert err.startswith(f"error: {path}: {words}") and err.count("\n") == 1


def test_other_files_are_no_profile(gemel: Call, bundle_folder: Path) -> None:
    workload, bundle = bundle_folder / "workload.yaml", bundle_folder / "bundle"
    for path, words in (
        (workload, f"is a workload, not a profile; first compile it: gemel-compile {workload} -o bundle/"),
        (bundle, f"is a bundle, not a profile; gemel profile {bundle} writes a profile of it"),
        (bundle_folder, "is a folder, not a profile; gemel profile BUNDLE writes a profile"),
    ):
        code, _, err = gemel("simulate", path)
        assert (code, err) == (2, f"error: {path}: {words}\n")


def compiled(gemel: Call, folder: Path, **changes: Any) -> list[str]:
    document = json.loads((folder / "workload.yaml").read_text())
    (folder / "workload.yaml").write_text(json.dumps({**document, **changes}))
    code, out, err = gemel("compile", folder / "workload.yaml", "-o", folder / "bundle")
    assert code == 0, err
    return out.splitlines()


def test_compile_warns_of_feeds_and_memory(gemel: Call, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMEL_CAMERA", raising=False)
    feeds = {"yard": {"source": "typo.mp4"}, "gate": {"source": "${GEMEL_CAMERA}"}}
    lines = compiled(gemel, bundle_folder, feeds=feeds, device={"memory": "1%"})
    assert lines[0].startswith("    feed  warning: feed 'yard': source 'typo.mp4' does not exist; allowed: ")
    assert lines[0].endswith("; gemel-run --feed yard=SOURCE replaces it")
    assert lines[1] == "    feed  gate: its address is filled in when the bundle runs"
    assert sum(line.startswith("   input  ") for line in lines) == 2
    assert "   input  a, c: 32 x 32 (height x width), NCHW float32, rgb, " in "\n".join(lines)
    assert lines[-2] == (
        "  memory  warning: device.memory: 1% is less than the 0.0 MB that the largest model needs; give at least 1MiB,"
        " or min"
    )


def test_compile_is_silent_where_all_is_well(gemel: Call, bundle_folder: Path) -> None:
    lines = compiled(gemel, bundle_folder, device={"memory": "min"})
    assert not [line for line in lines if "warning" in line or line.startswith("  memory")]


def test_the_address_of_a_camera_keeps_a_variable_that_is_not_set(
    gemel: Call, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMEL_CAMERA", raising=False)
    feeds = {name: {"source": "rtsp://${GEMEL_CAMERA}/1"} for name in ("yard", "gate")}
    lines = compiled(gemel, bundle_folder, feeds=feeds)
    assert not [line for line in lines if line.startswith("    feed")]
    manifest = json.loads((bundle_folder / "bundle" / "manifest.json").read_text())
    assert {feed["source"] for feed in manifest["feeds"].values()} == {"rtsp://${GEMEL_CAMERA}/1"}
    code, _, err = gemel("run", bundle_folder / "bundle", "--frames", "1")
    assert code == 2 and "environment variable GEMEL_CAMERA is not set" in err


def test_a_query_that_fails_on_every_frame_fails_the_run(gemel: Call, bundle: Path) -> None:
    # The graph refuses the input. Three frames are fewer than the failures after which a query is given up.
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["models"]["b"]["input"].update(size=[8, 8], color="gray", mean=[0], std=[1])
    path.write_text(json.dumps(document))
    code, out, _ = gemel("run", bundle, "--offline", "--frames", "3")
    assert code == 1
    assert out.splitlines()[-1].startswith("failed: b: ")
