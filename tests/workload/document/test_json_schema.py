"""The published JSON schema of workload.yaml, and docs/workload.md beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from gemel.compiler.recognition import FAMILIES
from gemel.workload.document.json_schema import SCHEMA_FILE, workload_schema
from gemel.workload.document.output_schema import Jsonl, Mqtt, Samples, Snapshots, Video, Webhook
from gemel.workload.document.schema import Data, DeviceSettings, FeedSettings, Input, Model, Query, Workload

ROOT = Path(__file__).resolve().parents[3]
PARTS: dict[type[BaseModel], str] = {
    Workload: "",
    DeviceSettings: "device.",
    FeedSettings: "",
    Query: "",
    Data: "data.",
    Model: "",
    Input: "",
    Jsonl: "jsonl.",
    Mqtt: "mqtt.",
    Webhook: "webhook.",
    Video: "video.",
    Snapshots: "snapshots.",
    Samples: "samples.",
}
"""Part of a workload -> what stands before its keys in the tables of docs/workload.md."""
EXAMPLES = sorted(ROOT.glob("examples/**/workload.yaml"))


def rows() -> dict[str, str]:
    """Return key -> row, of the tables of docs/workload.md whose first column is ``field``."""
    found: dict[str, str] = {}
    text = (ROOT / "docs" / "workload.md").read_text(encoding="utf-8")
    for table in re.findall(r"^\| field \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            for key in re.findall(r"`([\w.]+)`", row.split("|")[1]):
                found[key] = row
    return found


def test_published() -> None:
    published = (ROOT / "docs" / SCHEMA_FILE).read_text(encoding="utf-8")
    assert published == workload_schema(), "run: .venv/bin/python tools/write_schema.py"


def test_descriptions_are_what_an_editor_shows() -> None:
    text = workload_schema()
    assert "``" not in text and ":mod:" not in text and "\\n" not in text
    schema = json.loads(text)
    for part in schema["$defs"].values():
        for key, field in part["properties"].items():
            assert field.get("description") or "$ref" in field, key


def test_the_page_has_a_row_for_every_key_and_no_other() -> None:
    wanted = {f"{prefix}{name}" for part, prefix in PARTS.items() for name in part.model_fields}
    # Their keys have rows of their own.
    assert set(rows()) == wanted - {"device", "queries", "data"}


@pytest.mark.parametrize("part", [DeviceSettings, Input, Query])
def test_the_page_has_every_choice(part: Any) -> None:
    for name, field in part.model_fields.items():
        values = [each for kind in (field.annotation, *get_args(field.annotation)) for each in get_args(kind)]
        for value in values:
            if isinstance(value, str):
                assert f"`{value}`" in rows()[f"{PARTS[part]}{name}"], f"{name}: {value}"


def test_the_page_has_every_family() -> None:
    text = (ROOT / "docs" / "workload.md").read_text(encoding="utf-8")
    assert not [family.names[0] for family in FAMILIES if f"`{family.names[0]}`" not in text]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_are_valid(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(workload_schema()))


@pytest.mark.parametrize(
    "change",
    [
        {"sla": 0.1},
        {"device": {"memory": 64}},
        {"device": {"backend": "cuda"}},
        {"feeds": {"gate": "cars.mp4"}},
        {"queries": [{"name": "a"}]},
        {"querys": []},
    ],
)
def test_an_editor_marks_mistakes(change: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    good = yaml.safe_load((ROOT / "examples" / "street" / "workload.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, **change}, json.loads(workload_schema()))
