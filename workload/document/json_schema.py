"""JSON schemas of YAML files that people write, by which editors complete keys and mark mistakes."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel

from .schema import Workload

__all__ = ["SCHEMA_FILE", "schema_text", "workload_schema"]

SCHEMA_FILE = "workload.schema.json"
"""Name of the file with the JSON schema of workload.yaml, in docs and beside a workload that ``gemel init`` wrote."""
_TITLE = "workload.yaml of gemel"


def workload_schema() -> str:
    """Return the JSON schema of workload.yaml as the text of a file."""
    return schema_text(Workload, _TITLE)


def schema_text(model: type[BaseModel], title: str) -> str:
    """Return the JSON schema of a YAML file as the text of a file.

    Args:
        model: Pydantic model of the file, whose docstrings become the descriptions.
        title: title of the schema.
    """
    schema: dict[str, Any] = _readable(model.model_json_schema())
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return json.dumps({**head, **{key: value for key, value in schema.items() if key not in head}}, indent=1) + "\n"


def _readable(value: Any) -> Any:
    """Return a JSON schema with its descriptions turned from docstrings into one line of Markdown, for editors."""
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    text = value.get("description")
    known = {key: _readable(item) for key, item in value.items()}
    if isinstance(text, str):
        known["description"] = re.sub(r":\w+:`", "`", " ".join(text.split())).replace("``", "`")
    return known
