"""Models of one architecture: exported once, each with its own weights; on their own where that is not certain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from helpers import query, save
from tiny_models import tiny
from torch import nn
from twin_models import Scaled, TwoHeads, Undefined, scales

from gemel.bundles.reader import open_bundle
from gemel.check.source.numerics import compare_with_source
from gemel.compiler import compile_workload
from gemel.compiler.heads import Cut
from gemel.compiler.lowering import export_once as room
from gemel.compiler.lowering import pytorch
from gemel.compiler.lowering.export import export_stages
from gemel.compiler.lowering.lower import lower
from gemel.compiler.lowering.pytorch import cut_query
from gemel.compiler.passes.edit import constant, replace_constant
from gemel.workload import Workload
from gemel.workload.document.schema import Query

Make = Callable[..., Workload]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of what is exported from now on."""
    names: list[str] = []
    export = export_stages

    def counted(stage: Any, where: str) -> Any:
        names.append(where)
        return export(stage, where)

    monkeypatch.setattr(room, "export_stages", counted)
    return names


def check(bundle: Path, workload: Workload) -> None:
    results = list(compare_with_source(open_bundle(bundle), workload, rtol=1e-4, atol=1e-6))
    assert results and all(result.passed for result in results), results


def saved(folder: Path, make: Callable[[int], nn.Module], names: str = "abc") -> None:
    for seed, name in enumerate(names):
        save(make(seed), folder / f"{name}.safetensors")


def seeded(kind: type[nn.Module]) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return kind()

    return make


def test_models_of_one_architecture_are_exported_once(
    tmp_path: Path, workload_in: Make, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, tiny)
    save(tiny(3, num_classes=4), tmp_path / "d.safetensors")
    other = query("d")
    other["model"]["args"] = {"num_classes": 4}
    workload = workload_in(query("a"), other, query("b"), query("c"))
    lines: list[str] = []
    compile_workload(workload, tmp_path / "bundle", lambda name, what: lines.append(f"{name} {what}"))
    assert exported == ["query a", "query d"]
    check(tmp_path / "bundle", workload)
    told = [line for line in lines if line.startswith("export")]
    assert [line.rpartition(", ")[2] for line in told if "the graph of a with its own weights" in line] == [
        "the graph of a with its own weights"
    ] * 2
    assert [line.split(":")[0] for line in told] == ["export a", "export d", "export b", "export c"]
    # Byte for byte what separate exports give.
    monkeypatch.setattr(room, "fingerprint", lambda stage: None)
    compile_workload(workload, tmp_path / "apart")
    assert len(exported) == 2 + 4
    for path in (tmp_path / "apart").iterdir():
        assert path.read_bytes() == (tmp_path / "bundle" / path.name).read_bytes(), path.name


def test_tied_weights_and_constants_are_kept(tmp_path: Path, workload_in: Make, exported: list[str]) -> None:
    saved(tmp_path, seeded(TwoHeads))
    workload = workload_in(*(query(name, "twin_models:TwoHeads") for name in "abc"))
    compile_workload(workload, tmp_path / "bundle")
    assert exported == ["query a"]
    check(tmp_path / "bundle", workload)


def test_a_graph_that_gives_other_outputs_is_not_used_again(
    tmp_path: Path, workload_in: Make, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, seeded(Scaled), "ab")
    workload = workload_in(query("a", "twin_models:Scaled"), query("b", "twin_models:Scaled"))

    def step(name: str, what: str) -> None:
        scales.append(3.0)

    try:
        made = compile_workload(workload, tmp_path / "bundle", step)
    finally:
        del scales[1:]
    assert exported == ["query a", "query b"]
    programs = [made.manifest.models[name].stages["main"].program for name in "ab"]
    assert programs[0] != programs[1]


def test_outputs_that_prove_nothing_are_not_trusted(tmp_path: Path, workload_in: Make, exported: list[str]) -> None:
    saved(tmp_path, seeded(Undefined), "ab")
    names = [query(name, "twin_models:Undefined", task="raw") for name in "ab"]
    compile_workload(workload_in(*names), tmp_path / "bundle")
    assert exported == ["query a", "query b"]


def test_a_graph_that_no_session_takes_is_not_used_again(
    tmp_path: Path, workload_in: Make, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("no session")

    saved(tmp_path, tiny, "ab")
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    workload = workload_in(query("a"), query("b"))
    compile_workload(workload, tmp_path / "bundle")
    assert exported == ["query a", "query b"]


def test_a_weight_that_the_exporter_changed_is_not_replaced(
    tmp_path: Path, workload_in: Make, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_stages

    def changed(stage: Any, where: str) -> Any:
        exported.append(where)
        graph = export(stage, where)
        for name, value in graph.graph.initializers.items():
            if name == "stem.weight":
                replace_constant(value, constant(value) * 2)
        return graph

    monkeypatch.setattr(room, "export_stages", changed)
    saved(tmp_path, tiny, "ab")
    compile_workload(workload_in(query("a"), query("b")), tmp_path / "bundle")
    assert exported == ["query a", "query b"]


def test_every_stage_of_a_model_is_exported_once(
    tmp_path: Path, workload_in: Make, exported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Cut] = []

    def cut_in_two(query: Query, root: Path) -> Cut:
        found = cut_query(query, root)
        stages = {"main": found.stages["main"], "head": replace(found.stages["main"], outputs=("others",))}
        parts.append(replace(found, stages=stages))
        return parts[-1]

    monkeypatch.setattr(pytorch, "cut_query", cut_in_two)
    saved(tmp_path, tiny, "ab")
    workload, known = workload_in(query("a"), query("b")), {}  # type: ignore[var-annotated]
    lowered = [lower(each, workload.root, known) for each in workload.queries]
    assert exported == ["query a", "query a, stage head"]
    assert [model.twin for model in lowered] == [None, "a"]
    for model, cut in zip(lowered, parts, strict=True):
        for name, graph in model.stages.items():
            assert graph.graph.name == (model.name if name == "main" else f"{model.name}.head")
            own = cut.stages[name].module.state_dict()["model.stem.weight"].numpy()
            assert (constant(graph.graph.initializers["stem.weight"]) == own).all()
