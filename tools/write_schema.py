"""Write the published schemas into docs: of bundles (manifest.json), workloads (workload.yaml) and boxes (boxes.yaml).

    .venv/bin/python tools/write_schema.py

Run with the locked pydantic: other versions may write the same schema differently.
"""

from __future__ import annotations

import json
from pathlib import Path

from gemel.bundles.manifest import Manifest
from gemel.fleet.boxes_file import BOXES_SCHEMA_FILE, boxes_schema
from gemel.workload.document.json_schema import SCHEMA_FILE, workload_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"

if __name__ == "__main__":
    for name, text in (
        ("manifest.schema.json", json.dumps(Manifest.model_json_schema(), indent=1) + "\n"),
        (SCHEMA_FILE, workload_schema()),
        (BOXES_SCHEMA_FILE, boxes_schema()),
    ):
        (DOCS / name).write_text(text)
        print(DOCS / name)
