"""Tests of pyproject.toml: its packages are the folders with modules, and messages name extras that exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from gemel.errors import install_hint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("bundles", "frames", "workload", "runtime", "compiler", "merging", "calib", "check", "fleet", "cli")


def test_every_folder_of_the_product_is_packaged() -> None:
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == {
        "gemel",
        *(".".join(("gemel", *folder.parts)) for folder in folders),
    }


def test_messages_name_extras_that_exist() -> None:
    modules = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    text = "".join(path.read_text() for path in modules)
    calls = r"(?:missing_extra|MissingExtraError)\([^()]*,|install_hint\("
    named = set(re.findall(rf"(?:{calls})\s*\"([\w-]+)\"\)", text))
    assert named >= {"compiler", "merge", "eval", "ray"}
    assert named <= PYPROJECT["project"]["optional-dependencies"].keys()
    assert install_hint("merge") == "in a checkout of gemel, pip install '.[merge]'"
    # gemel is on no package index: anyone may register a package of that name there.
    assert not re.search(r"pip install ['\"]?gemel", text)
