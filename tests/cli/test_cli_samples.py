"""Samples of ``gemel-run``: flags, the bundle's own output, and what a bundle can never do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gemel.bundles.output_specs import OutputSpec
from gemel.bundles.reader import MANIFEST, open_bundle
from gemel.frames.frame import Image
from gemel.runtime.decode.results import Result
from gemel.runtime.sinks.sample_folder import SampleFolder
from gemel.runtime.sinks.sample_record import parse_record

Call = Callable[..., tuple[int, str, str]]


def refuse_gate(image: Image, answers: Mapping[str, Result]) -> Image | None:
    """Hook that stores no frame that the query ``c`` has answered."""
    return None if "c" in answers else image


def test_from_the_flags_to_the_files(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    folder, summary = tmp_path / "samples", tmp_path / "s.json"
    hook = f"{refuse_gate.__module__}:refuse_gate"
    code, out, err = gemel(
        *("run", bundle, "--offline", "--samples", folder, "--sample-every", "500ms"),
        *("--sample-hook", hook, "--json", summary),
    )
    assert code == 0, err
    assert f" samples  {folder}" in out
    found = [parse_record(path.read_bytes()) for path in SampleFolder(folder, None, None).records()]
    # 1.2 s of the feed yard.
    assert [each.time for each in found] == [0.0, 0.5, 1.0]
    opened = open_bundle(bundle)
    run = json.loads(summary.read_text())
    assert {(each.bundle, each.run, each.feed, each.changed) for each in found} == {
        (opened.id, run["run"], "yard", True)
    }
    assert all(each.answers.keys() == {"a", "b"} for each in found)
    assert (run["outputs"]["samples"]["dropped"], run["outputs"]["samples"]["failed"]) == (0, 0)


def test_an_output_of_the_bundle(gemel: Call, bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    document["outputs"] = [{"samples": {"folder": str(tmp_path / "own"), "every": 0.5}}]
    (bundle / MANIFEST).write_text(json.dumps(document))
    code, out, _ = gemel("run", bundle, "--offline")
    assert code == 0
    assert f"  output  samples: {tmp_path}/own" in out
    assert len(SampleFolder(tmp_path / "own", None, None).records()) == 5


def test_a_bundle_can_name_neither_hook_nor_store() -> None:
    spec: Any = {"samples": {"folder": "s", "hook": "os:system", "upload": "s3://elsewhere"}}
    found = OutputSpec.model_validate(spec)
    assert found.model_dump()["samples"].keys() == {"folder", "every", "keep", "age", "quality"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sample-every", "30s"), "--sample-every: --samples DIR is needed with it"),
        (("--sample-hook", "os.path:join"), "--sample-hook: --samples DIR or an output samples is needed with it"),
        (("--sample-upload", "s3://x"), "--sample-upload: --samples DIR or an output samples is needed with it"),
        (("--samples", "s3://x"), "--samples: a folder of this machine is expected; --sample-upload moves samples"),
        (("--samples", "s", "--sample-every", "soon"), "--sample-every: 'soon' is not allowed: a period such as"),
        (("--samples", "s", "--sample-every", "0"), "--sample-every: '0' is not allowed: more than 0 is expected"),
        (("--samples", "s", "--sample-hook", "nosuch:f"), "--sample-hook: nosuch:f: ModuleNotFoundError: "),
        (("--samples", "s", "--sample-upload", "bucket"), "--sample-upload: an address such as s3://bucket/folder"),
    ],
)
def test_flags_that_are_refused(gemel: Call, bundle: Path, flags: tuple[str, ...], message: str) -> None:
    code, _, err = gemel("run", bundle, "--offline", *flags)
    assert code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1
