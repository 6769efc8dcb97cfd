"""The published schema of manifest.json equals the schema of the code."""

from __future__ import annotations

import json
from pathlib import Path

from gemel.bundles.manifest import Manifest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_published_schema() -> None:
    published = json.loads((DOCS / "manifest.schema.json").read_text())
    assert published == Manifest.model_json_schema(), "run: .venv/bin/python tools/write_schema.py"
