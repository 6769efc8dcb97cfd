"""The worked examples of CONTRIBUTING.md, run as they stand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gemel
from gemel.merging.strategies import STRATEGIES, SearchSettings
from gemel.runtime.backends import BACKENDS
from gemel.runtime.decode import DECODERS, DecodeContext, build_decoder

PAGE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"
Example = Callable[[str], ModuleType]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Example]:
    """Run an example as a module of its own; registries are as before afterwards."""
    registries: tuple[dict[str, Any], ...] = (DECODERS, BACKENDS, STRATEGIES)

    def run(name: str) -> ModuleType:
        (code,) = re.findall(rf"```python {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
        module = ModuleType(f"contributing_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
        return module

    yield run
    for registry in registries:
        for key in [key for key, value in registry.items() if "contributing" in str(value)]:
            del registry[key]


def test_decoder(example: Example) -> None:
    module = example("decoder")
    context = DecodeContext(lambda name: np.zeros(0, np.float32), labels=("shut", "open"))
    decode: Any = build_decoder(module.BinaryDecode(), context)
    (found,) = decode({"logit": np.array([[2.0]], np.float32)}, None, None)
    assert (found.label, found.score) == ("open", pytest.approx(0.8808, abs=1e-4))
    (found,) = decode({"logit": np.array([[-2.0]], np.float32)}, None, None)
    assert (found.label, found.score) == ("shut", pytest.approx(0.8808, abs=1e-4))


def test_backend(example: Example, bundle: Path) -> None:
    example("backend")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    opened = gemel.open_bundle(bundle)
    with gemel.BundleSession(opened, threads=1) as session:
        wanted = session.answer("a", image)
    with gemel.BundleSession(opened, backend="onnx-reference", memory="min") as session:
        found = session.answer("a", image)
    assert [each.label for each in found] == [each.label for each in wanted]  # type: ignore[union-attr]
    scores = [each.score for each in wanted]  # type: ignore[union-attr]
    assert [each.score for each in found] == pytest.approx(scores, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.usefixtures("one_thread")
def test_strategy(example: Example, trained: Path) -> None:
    example("strategy")
    settings = SearchSettings(steps=24, batch=50)
    options = gemel.MergeOptions("two-tries", settings=settings, device="cpu")
    report = gemel.merge_workload(gemel.load_workload(trained / "workload.yaml"), trained / "merged", options)
    assert report.trials[0].group == "everything"
    assert report.saving > 0.1


def test_sink(example: Example, tmp_path: Path) -> None:
    sink = example("sink").CountSink(tmp_path / "counts.csv")
    sink.on_result("people", SimpleNamespace(index=7), ("one", "two"), 3.0)
    sink.close()
    assert (tmp_path / "counts.csv").read_text().strip() == "people,7,2"


def test_the_table_names_enough_tasks() -> None:
    rows = re.findall(
        r"^\| .* \| `.*$", PAGE.read_text().split("## Where do I change")[1].split("## Add")[0], re.MULTILINE
    )
    assert len(rows) >= 15
