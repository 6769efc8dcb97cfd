"""Reader of boxes.yaml: what it takes, one line about every mistake, and the published schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemel.errors import InputError
from gemel.fleet.boxes_file import BOXES_SCHEMA_FILE, BoxesFile, BoxSettings, boxes_schema, read_boxes

ROOT = Path(__file__).resolve().parents[2]
FEEDS = frozenset({"gate", "yard"})


def read(folder: Path, text: str) -> tuple[BoxSettings, ...]:
    path = folder / "boxes.yaml"
    path.write_text(text)
    return read_boxes(path, FEEDS)


def boxes(*items: str) -> str:
    return 'schema_version: "1"\nboxes:\n' + "".join(f"- {item}\n" for item in items)


def test_what_is_read(tmp_path: Path) -> None:
    first, second = read(
        tmp_path,
        boxes("{name: a, memory: 512MiB}", "{name: b, memory: 2GB, speed: 0.5, feeds: [gate], max_queries: 3}"),
    )
    assert (first.name, first.memory, first.speed, first.feeds, first.max_queries) == ("a", 512 << 20, 1.0, [], None)
    assert (second.memory, second.speed, second.feeds, second.max_queries) == (2 * 10**9, 0.5, ["gate"], 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (boxes("{name: a}"), "3: boxes[0].memory: is missing"),
        (boxes("{name: a, memory: 0}"), "3: boxes[0].memory: 0 is not allowed: bytes such as 64MiB are expected"),
        (boxes("{name: a, memory: all}"), "3: boxes[0].memory: 'all' is not allowed: bytes such as 64MiB are expected"),
        (boxes("{name: a, memory: 50%}"), "3: boxes[0].memory: '50%' is not allowed: bytes such as 64MiB are expected"),
        (
            boxes("{name: a, memory: 512M}"),
            "3: boxes[0].memory: '512M' is not allowed: bytes such as 64MiB are expected; did you mean 512MB?",
        ),
        (
            boxes("{name: a, memory: 512}"),
            "3: boxes[0].memory: 512 is not allowed: a bare number is bytes; did you mean 512MiB? (512 bytes are 512B)",
        ),
        (
            boxes("{name: a, memory: 1GB}", "{name: a, memory: 1GB}"),
            "4: boxes[1].name: two boxes are called 'a'; names must be unique",
        ),
        (
            boxes("{name: a, memory: 1GB, feeds: [gate, door]}"),
            "3: boxes[0].feeds[1]: 'door' is not a feed of the bundles; feeds: gate, yard",
        ),
        (boxes("{name: a, memory: 1GB, speed: 0}"), "3: boxes[0].speed: 0 is not allowed: greater than 0"),
        (
            boxes("{name: a, memory: 1GB, max_queries: 0}"),
            "3: boxes[0].max_queries: 0 is not allowed: greater than or equal to 1",
        ),
        (boxes("{name: ../a, memory: 1GB}"), "3: boxes[0].name: '../a' is not allowed: letters, digits, - and _"),
        (boxes("{name: a, memory: 1GB, feed: [gate]}"), "3: boxes[0].feed: unknown key 'feed'; did you mean 'feeds'?"),
        ('schema_version: "1"\nboxes: []\n', "2: boxes: [] is not allowed: at least one is expected"),
        ('schema_version: "1"\n', "1: boxes: is missing"),
        ("boxes: [{name: a, memory: 1GB}]\n", "1: schema_version: is missing"),
        (
            'schema_version: "1"\nmemory: 1GB\nboxes: [{name: a, memory: 1GB}]\n',
            "2: memory: unknown key 'memory'; it belongs in an item of boxes; allowed: schema_version, boxes",
        ),
        ('schema_version: "1"\nboxes:\n  a: {memory: 1GB}\n', "2: boxes: a list is expected, not a mapping"),
        ("- name: a\n", " a mapping with schema_version and boxes is expected"),
        ("boxes: [\n", "2: not YAML: "),
        ("boxes: 1\nboxes: 2\n", "2: key 'boxes' is there twice"),
    ],
)
def test_mistakes(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'boxes.yaml'}:{message}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"boxes.yaml: cannot be read: No such file"):
        read_boxes(tmp_path / "boxes.yaml", FEEDS)
    (tmp_path / "boxes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"boxes.yaml: cannot be read: it is not text"):
        read_boxes(tmp_path / "boxes.yaml", FEEDS)


def test_the_schema_is_published_and_the_page_has_every_key() -> None:
    published = (ROOT / "docs" / BOXES_SCHEMA_FILE).read_text(encoding="utf-8")
    assert published == boxes_schema(), "run: .venv/bin/python tools/write_schema.py"
    page = (ROOT / "docs" / "placement.md").read_text(encoding="utf-8")
    for model in (BoxesFile, BoxSettings):
        for key in model.model_fields:
            assert f"| `{key}` |" in page
