"""Run the tests on every Python of this machine from 3.10 on, each in an environment of its own with locked versions.

    python3 tools/run_on_pythons.py [--uv PATH] [--python PATH ...] [--extra NAME ...] [-- PYTEST_ARGUMENTS]

``make test-pythons`` calls it. Interpreters are looked for on the ``PATH`` and in pyenv's folder; the newest patch
release of each minor version is used. Environments are kept in ``.venv-pythons/``. A Python is skipped, with uv's
message, where a locked package has no wheel for it and cannot be built. The last lines state the outcome of each
Python. The exit code is 1 where tests failed or none ran. The script needs the standard library only, because it runs
before any environment exists.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_OLDEST = (3, 10)
_NO_WHEEL = re.compile(
    r"Failed to (?:download and )?build `(?!gemel)|no wheels|doesn't have a source distribution or wheel"
)
"""Pattern of uv's message when a package has no wheel for a Python and cannot be built from source."""


def candidates() -> list[str]:
    """Return the paths of executables that may be Python interpreters: pyenv's, then those on the ``PATH``."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders = [*pyenv.glob("*/bin"), *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    return [str(path) for folder in folders for path in folder.glob("python3*") if os.access(path, os.X_OK)]


def version_of(python: str) -> tuple[int, ...] | None:
    """Return the version of a CPython interpreter, as ``(3, 12, 1)``; None for any other file."""
    code = "import sys; print(sys.implementation.name, *sys.version_info[:3])"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, *numbers = done.stdout.split() or [""]
    return tuple(map(int, numbers)) if done.returncode == 0 and name == "cpython" else None


def newest(pythons: Iterable[str]) -> dict[str, str]:
    """Return the interpreter with the newest patch release of each minor Python version, such as ``3.12`` -> path."""
    found: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    for python in pythons:
        version = version_of(python)
        if version is not None and version >= _OLDEST and version > found.get(version[:2], ((), ""))[0]:
            found[version[:2]] = version, python
    return {".".join(map(str, minor)): python for minor, (_, python) in sorted(found.items())}


def run_tests(uv: str, name: str, python: str, extras: Iterable[str], tests: Sequence[str]) -> str:
    """Set up an environment for one Python, run the tests in it, and return the outcome.

    Args:
        uv: path of the uv executable.
        name: minor version, which names the environment's folder.
        python: path of the interpreter.
        extras: extras of gemel to install.
        tests: arguments of pytest.
    """
    folder = _ROOT / ".venv-pythons" / name
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder), "OMP_NUM_THREADS": "1"}
    flags = [f"--extra={extra}" for extra in extras]
    command = [uv, "sync", "--quiet", "--locked", "--python", python, *flags]
    done = subprocess.run(command, cwd=_ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())
        return f"{'skipped' if _NO_WHEEL.search(said) else 'failed'}: {said}"
    code = subprocess.run([folder / "bin" / "python", "-m", "pytest", *tests], cwd=_ROOT, env=environment).returncode
    return "passed" if code == 0 else f"failed: pytest ended with {code}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests on each Python of this machine, print each outcome, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", default="uv", help="the uv executable")
    parser.add_argument("--python", action="append", help="use this interpreter; may be given more than once")
    parser.add_argument("--extra", action="append", default=[], help="install this extra; may be given more than once")
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST_ARGUMENT", help="passed on to pytest")
    options = parser.parse_args(arguments)
    outcomes = {}
    for name, python in newest(options.python or candidates()).items():
        print(f"== Python {name}: {python}", flush=True)
        outcomes[name] = run_tests(options.uv, name, python, options.extra, options.pytest)
        print(f"== Python {name}: {outcomes[name]}", flush=True)
    print("", *(f"Python {name}: {outcome}" for name, outcome in outcomes.items()), sep="\n")
    ran = [outcome for outcome in outcomes.values() if not outcome.startswith("skipped")]
    return 0 if ran and all(outcome == "passed" for outcome in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
