"""Tests of tools/run_on_pythons.py: which interpreters it finds, and what it makes of uv's and pytest's outcomes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import run_on_pythons
from run_on_pythons import main, newest, version_of


def script(path: Path, text: str) -> str:
    """Write an executable shell script, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def pythons(tmp_path: Path) -> dict[str, str]:
    """Scripts that answer as interpreters would, by name."""
    said = {
        "old": "cpython 3 9 18",
        "ten": "cpython 3 10 2",
        "ten-newer": "cpython 3 10 13",
        "twelve": "cpython 3 12 1",
        "pypy": "pypy 3 11 9",
    }
    found = {name: script(tmp_path / "bin" / name, f"echo {text}") for name, text in said.items()}
    # pyenv's shim of a version that is not active.
    return found | {"shim": script(tmp_path / "bin" / "shim", "echo python3.13: command not found >&2; exit 127")}


def test_versions(pythons: dict[str, str], tmp_path: Path) -> None:
    assert version_of(pythons["ten-newer"]) == (3, 10, 13)
    assert [version_of(path) for path in (pythons["pypy"], pythons["shim"], str(tmp_path / "no"))] == [None] * 3


def test_the_newest_patch_release_of_each_minor_version(pythons: dict[str, str]) -> None:
    assert list(newest(pythons.values()).items()) == [("3.10", pythons["ten-newer"]), ("3.12", pythons["twelve"])]


def test_interpreters_of_pyenv_and_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [script(tmp_path / place / "python3.12", "") for place in ("pyenv/versions/3.12.1/bin", "path")]
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert run_on_pythons.candidates() == wanted


@pytest.mark.parametrize(
    ("said", "tests", "outcome", "code"),
    [
        ("", 0, "passed", 0),
        ("", 1, "failed: pytest ended with 1", 1),
        ("error: Failed to build `numpy==1.26.0`", 0, "skipped: error: Failed to build `numpy==1.26.0`", 1),
        ("error: Failed to build `gemel @ file:///x`", 0, "failed: error: Failed to build `gemel @ file:///x`", 1),
        ("error: no network", 0, "failed: error: no network", 1),
    ],
)
def test_outcomes(
    said: str,
    tests: int,
    outcome: str,
    code: int,
    pythons: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_on_pythons, "_ROOT", tmp_path)
    script(tmp_path / ".venv-pythons/3.12/bin/python", f'echo "tests: $@"; exit {tests}')
    uv = script(tmp_path / "uv", f"echo \"uv: $@\"; echo '{said}' >&2; exit {int(bool(said))}")
    assert main(["--uv", uv, "--python", pythons["twelve"], "--extra", "merge", "--", "-n", "2"]) == code
    out = capfd.readouterr().out
    assert f"uv: sync --quiet --locked --python {pythons['twelve']} --extra=merge\n" in out
    assert ("tests: -m pytest -n 2\n" in out) is not bool(said)
    assert out.splitlines()[-1] == f"Python 3.12: {outcome}"


def test_one_skipped_python_does_not_fail_the_others(
    pythons: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_on_pythons, "_ROOT", tmp_path)
    script(tmp_path / ".venv-pythons/3.10/bin/python", "")
    failing = 'case "$UV_PROJECT_ENVIRONMENT" in *3.12) echo "Failed to build \\`x==1\\`" >&2; exit 1;; esac'
    uv = script(tmp_path / "uv", failing)
    assert main(["--uv", uv, "--python", pythons["ten"], "--python", pythons["twelve"]]) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == [
        "Python 3.10: passed",
        "Python 3.12: skipped: Failed to build `x==1`",
    ]


def test_no_python_is_a_failure(pythons: dict[str, str]) -> None:
    assert main(["--uv", os.devnull, "--python", pythons["old"]]) == 1
