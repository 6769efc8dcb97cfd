"""Write docs/manifest.schema.json, the published schema of a bundle's manifest.

    .venv/bin/python tools/write_schema.py

Run with the locked pydantic: other versions may write the same schema differently.
"""

from __future__ import annotations

import json
from pathlib import Path

from gemel.bundles.manifest import Manifest

DOC = Path(__file__).resolve().parent.parent / "docs" / "manifest.schema.json"

if __name__ == "__main__":
    DOC.write_text(json.dumps(Manifest.model_json_schema(), indent=1) + "\n")
    print(DOC)
