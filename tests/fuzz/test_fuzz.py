"""Some changed manifests, workloads, caches and HTTP requests in every test run; tools/fuzz.py takes many more."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from fuzz_targets import TARGETS, Playground, make_playground
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = {"manifest": 60, "workload": 200, "cache": 40, "request": 150}
"""Target -> inputs in a test run. Targets that are not listed get 30."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("CACHE", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(folder / "inside" / kind.lower()))
        patch.setattr(tempfile, "tempdir", str(folder / "inside"))
        yield make_playground(folder)


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_input_is_refused_in_one_line_or_runs(name: str, ground: Playground) -> None:
    target = TARGETS[name]
    inputs = target.inputs(ground)

    @settings(max_examples=INPUTS.get(name, 30), database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def take(data: Any) -> None:
        target.check(ground, data.draw(inputs))

    take()
