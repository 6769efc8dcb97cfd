"""README and the pages in docs: every path of the repository and every link that they name exists."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from gemel.workload import load_workload
from gemel.workload.document.output_schema import Jsonl, Mqtt, Output, Rotate, Samples, Snapshots, Video, Webhook
from gemel.workload.document.schema import Data, DeviceSettings, FeedSettings, Input, Model, Query, Workload

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/README*")])
# Top-level folders of the repository. A word that begins with one of them and a slash is a path.
FOLDERS = (
    *("bundles", "frames", "workload", "runtime", "compiler", "merging", "calib", "check", "fleet", "cli"),
    *("docs", "examples", "tests", "tools", ".ci", ".github"),
)
# Made by tools/make_street_example.py and not kept in the repository.
MADE = ("examples/street/weights", "examples/street/data", "examples/street/merged/weights")

_PATH = re.compile(rf"(?<![\w./$}}-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")
_CODE = re.compile(r"```.*?```|`[^`\n]+`|^ {4,}\S[^\n]*", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def paths(page: str) -> set[str]:
    """Return the paths of the repository that a page names in code spans and code blocks."""
    found = {match.rstrip(".") for code in _CODE.findall(page) for match in _PATH.findall(code)}
    return {path for path in found if not path.rstrip("/").startswith(MADE)}


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = _HEADING.findall(re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not {path for path in paths(text) if not (ROOT / path).exists()}
    wrong = set()
    for link in _LINK.findall(_CODE.sub("", text)):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page if not target else page.parent / target
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.add(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    assert not [each for each in named if not re.search(rf"^\s*(def|class) {each[1]}\b", texts[each[0]], re.MULTILINE)]


def test_what_counts_as_a_path() -> None:
    page = "`tools/bench_cpu.py` in docs/none.md, `out/docs/x`, `merged/workload.yaml`\n\n    python tools/none.py\n"
    assert paths(page) == {"tools/bench_cpu.py", "tools/none.py"}
    assert paths("`examples/street/weights/`, `https://x.org/docs/y`") == set()
    assert anchors("# On a GPU\n## What to run, and report\n") == {"on-a-gpu", "what-to-run-and-report"}


def test_every_page_says_first_what_the_reader_gets() -> None:
    for page in sorted(ROOT.glob("docs/*.md")):
        title, _, first = page.read_text(encoding="utf-8").partition("\n\n")
        assert title.startswith("# ") and "\n" not in title, page.name
        assert first.startswith(("This page ", "You get ")), page.name


def test_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= set(_LINK.findall(readme))


def test_workload_page_has_every_field_and_a_valid_example(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "workload.md").read_text(encoding="utf-8")
    outputs = (Output, Jsonl, Rotate, Mqtt, Webhook, Video, Snapshots, Samples)
    for part in (Workload, DeviceSettings, FeedSettings, Query, Data, Model, Input, *outputs):
        for field in part.model_fields:
            assert re.search(rf"`(\w+\.)?{field}[`.:]|^{field}:|{field}: ", page, re.MULTILINE), (
                f"{part.__name__}.{field}"
            )
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "workload.yaml").write_text(example, encoding="utf-8")
    assert load_workload(tmp_path / "workload.yaml").queries[0].labels == ["car", "truck"]
