"""Measure how much disk an installation of gemel takes, and print each distribution and what it is for.

    python3 tools/install_size.py [--extra NAME ...] [--python PATH] [--uv PATH] [--page FILE] [-- UV PIP ARGUMENTS]

The script installs a copy of this repository with ``uv`` into a new virtual environment in a temporary folder, and adds
up the files of every distribution in ``site-packages``. Compiled modules (``.pyc``) are not counted: uv writes none,
and ``pip`` writes them on top. The output is a Markdown table; ``--page`` writes it into the block install-size of a
page, too. The script needs the standard library only. One MB is 1,000,000 bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from documents import write_between

_ROOT = Path(__file__).resolve().parent.parent
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "out", "bundle", "docs", "examples", "tests", "tools"
)
"""Names of files and folders of the repository that are not copied: no distribution contains them, and some are
large."""
_SMALL = 1_000_000
"""Size in bytes below which distributions share one row of the table."""
PURPOSES = {
    "av": "FFmpeg: decodes cameras and files, encodes annotated video",
    "backports-zstd": "unpacks deltas",
    "gemel": "this package",
    "numpy": "arrays, and decoding of models' outputs",
    "onnxruntime": "runs models on the CPU",
    "opencv-python-headless": "resizes frames and maps of scores, reads and writes images, draws, suppresses boxes",
    "platformdirs": "folders of the user's caches and state",
    "protobuf": "reads ONNX files",
    "psutil": "memory and processor of this machine",
    "pydantic": "checks workloads and manifests",
    "pyyaml": "reads workloads",
    "rich": "tables and colours on the terminal",
    "typer": "command line",
}
"""Direct dependency -> what gemel needs it for."""
_LIST = """
import json
from importlib.metadata import distributions
found = []
for each in distributions():
    files = {file.locate().resolve() for file in each.files or ()}
    size = sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())
    found.append([each.metadata["Name"], each.version, size, each.requires or []])
print(json.dumps(found))
"""
"""Program that lists the distributions of the environment in which it runs."""


@dataclass(frozen=True)
class Distribution:
    """One distribution (package) in the environment, with its size and requirements."""

    name: str
    version: str
    bytes: int
    """Bytes of all files of the distribution, without compiled modules."""
    needs: frozenset[str]
    """Normalised names of all distributions that this distribution may require, in any environment or extra."""


def normal(name: str) -> str:
    """Return a distribution's name in the form in which two spellings of it are equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """Return the normalised name of a requirement's distribution: ``rich`` for ``Rich[all]>=13; extra == "x"``."""
    return normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def parse(listed: str) -> list[Distribution]:
    """Read the distributions from the output of the program :data:`_LIST`."""
    return [
        Distribution(
            normal(name),
            version,
            size,
            frozenset(map(requirement_name, requires)),
        )
        for name, version, size, requires in json.loads(listed)
    ]


def table(found: Sequence[Distribution], purposes: Mapping[str, str] = PURPOSES) -> str:
    """Return a Markdown table of distributions, the largest first; small ones share the row before the total."""
    order = sorted(found, key=lambda each: (-each.bytes, each.name))
    lines = ["| distribution | MB | what it is for |", "|---|--:|---|"]
    for each in order:
        if each.bytes >= _SMALL:
            users = sorted(other.name for other in found if each.name in other.needs)
            reason = purposes.get(each.name) or f"needed by {', '.join(users) or 'none of the others'}"
            lines.append(f"| {each.name} {each.version} | {each.bytes / 1e6:.1f} | {reason} |")
    small = [each for each in order if each.bytes < _SMALL]
    if small:
        names = ", ".join(each.name for each in small)
        lines.append(f"| {len(small)} others | {sum(each.bytes for each in small) / 1e6:.1f} | {names} |")
    lines.append(f"| **together** | **{sum(each.bytes for each in found) / 1e6:.0f}** | |")
    return "\n".join(lines)


def install(uv: str, python: str, extras: Sequence[str], arguments: Sequence[str], folder: Path) -> list[Distribution]:
    """Install gemel into a new environment in a folder, and return what is in the environment.

    Args:
        uv: path of uv.
        python: interpreter that the environment is made for.
        extras: extras of gemel to install, too.
        arguments: further arguments of ``uv pip install``.
        folder: folder for the copy of the repository and for the environment.
    """
    source, environment = folder / "source", folder / "environment"
    shutil.copytree(_ROOT, source, ignore=_LEFT_OUT)
    inside = environment / "bin" / "python"
    wanted = f"{source}[{','.join(extras)}]" if extras else str(source)
    subprocess.run([uv, "venv", "--quiet", "--python", python, environment], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", inside, *arguments, wanted], check=True)
    listed = subprocess.run([inside, "-I", "-c", _LIST], check=True, capture_output=True, text=True)
    return parse(listed.stdout)


def main(arguments: Sequence[str]) -> int:
    """Measure an installation, print its table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Print how much disk an installation of gemel takes.")
    parser.add_argument("--extra", action="append", default=[], help="install this extra, too", metavar="NAME")
    parser.add_argument("--python", default=sys.executable, help="interpreter to install for", metavar="PATH")
    parser.add_argument("--uv", default=shutil.which("uv") or str(_ROOT / ".uv" / "bin" / "uv"), metavar="PATH")
    parser.add_argument("--page", type=Path, help="write the table into this page", metavar="FILE")
    parser.add_argument("arguments", nargs="*", help="further arguments of uv pip install", metavar="ARGUMENT")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gemel-size-") as folder:
        made = table(install(given.uv, given.python, given.extra, given.arguments, Path(folder)))
    print(made)
    if given.page is not None:
        write_between(given.page, "install-size", made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
