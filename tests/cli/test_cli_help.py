"""Flags that do no work: --version, --help and shell completion."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from helpers import call
from typer.main import get_command

from gemel import version as version_module
from gemel.cli import app
from gemel.version import find_version

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = tuple(command.name for command in app.registered_commands)
HEAVY = ("torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "numpy", "cv2", "av")


def project_version() -> str:
    (found,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("command", [("gemel",), ("gemel-run",), ("gemel-compile",), ("gemel", "run")])
def test_version(command: tuple[str, ...]) -> None:
    done = call(*command, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gemel {find_version()}\n", "")


def test_the_version_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version_module, "version", not_installed)
    assert find_version() == project_version()
    monkeypatch.setattr(version_module, "_PROJECT", tmp_path / "pyproject.toml")
    assert find_version() == "unknown"


# Typer finds the shell among the parent processes, where a test may have none; the flag's value names the shell then.
SHELL = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion(shell: str) -> None:
    done = call("gemel", "--show-completion", shell, **SHELL)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_GEMEL_COMPLETE=complete_{shell}" in done.stdout


def test_install_completion(tmp_path: Path) -> None:
    done = call("gemel", "--install-completion", "bash", **SHELL, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _gemel_completion gemel" in (tmp_path / ".bash_completions" / "gemel.sh").read_text()
    assert "gemel.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gemel in", ["init", "inspect"]),
        ("gemel comp", ["compile"]),
        ("gemel run --mem", ["--memory"]),
        ("gemel --ver", ["--version"]),
    ],
)
def test_completion(words: str, expected: list[str]) -> None:
    asked = {"_GEMEL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert call("gemel", **asked).stdout.split() == expected


@pytest.mark.parametrize("flags", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(flags: tuple[str, ...]) -> None:
    script = (
        "import sys\n"
        "from gemel.cli import main\n"
        f"sys.argv = ['gemel', *{flags!r}]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_starts_with_a_capital_and_ends_with_a_stop(name: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    texts = [str(parameter.help) for parameter in command.params if getattr(parameter, "help", None)]
    assert texts
    for text in (command.help.partition("\n")[0], *texts):
        assert re.match(r"[A-Z]", text) and text.endswith("."), text
