"""Reader of a file of outputs, which replace those of a bundle."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ...bundles.output_specs import OutputSpec
from ...errors import WorkloadError
from .explain import explain
from .output_schema import OutputsFile, output_specs
from .yaml_text import parse_yaml

__all__ = ["load_outputs"]


def load_outputs(path: Path) -> tuple[OutputSpec, ...]:
    """Read a YAML file with the key ``outputs``, as in workload.yaml, and check that it is valid.

    Variables stay as they are; they are replaced when the outputs are opened.

    Raises:
        WorkloadError: the file is missing, is not valid YAML, or has an unknown key or a value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path}: is not UTF-8 text") from error
    node, document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise WorkloadError(f"{path}: a mapping is expected: begin the file with outputs: and indent the list")
    if "queries" in document:
        # The file is a whole workload, of which only the outputs are used.
        document = {"outputs": document.get("outputs", [])}
    try:
        content = OutputsFile.model_validate(document)
    except ValidationError as error:
        raise WorkloadError(explain(path, node, error)) from error
    return output_specs(content.outputs)
