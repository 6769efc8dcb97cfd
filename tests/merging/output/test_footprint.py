"""Test that a merge and a bundle count the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from helpers import query, save
from tiny_models import TinyNet, TinyTransformer, trained_looking
from torch import Tensor, nn

from gemel.bundles.manifest import Manifest
from gemel.bundles.merge_report import MergeReport
from gemel.compiler import compile_workload
from gemel.compiler.compile import Report
from gemel.compiler.lowering.export import export_stages
from gemel.compiler.lowering.pytorch import cut_query
from gemel.merging.merge import MergeOptions, merge_workload
from gemel.merging.models.networks import networks_of
from gemel.merging.output.footprint import StoredModel, bundle_bytes
from gemel.merging.output.skeleton import skeleton_of
from gemel.merging.strategies import SearchSettings
from gemel.workload import Workload, load_workload

Make = Callable[..., Workload]


class OddNet(nn.Module):
    """A model with every case that matters for counting; the comments name the cases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)  # has a bias and a BatchNorm behind it
        self.norm = nn.BatchNorm2d(8)
        self.forked = nn.Conv2d(8, 8, 3, padding=1, bias=False)  # has two readers, so its BatchNorm is not folded
        self.behind = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 1, bias=False)  # runs twice, with two different BatchNorms behind it
        self.once, self.twice = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.upper = nn.BatchNorm2d(4)
        self.apart = nn.BatchNorm2d(4)  # behind an activation, not a convolution
        self.one = nn.Conv2d(4, 1, 1)  # has a bias of a single number
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3))  # never runs
        self.embedding = nn.Parameter(torch.rand(4))
        self.register_buffer("grid", torch.rand(4, 1, 1))
        self.mix, self.same = nn.Linear(4, 4), nn.Linear(4, 4)
        self.same.weight = self.mix.weight
        self.head = nn.Linear(5, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.first(image)), inplace=True)
        y = self.forked(x)
        x = torch.relu(self.behind(y)) + y
        x = self.once(self.again(x)) + self.twice(self.again(torch.relu(x)))
        x = self.apart(torch.relu_(self.upper(self.up(x)))) * self.grid
        score = self.one(x).mean((2, 3))
        x = self.same(torch.relu(self.mix(x.mean((2, 3)) + self.embedding)))
        scores: Tensor = self.head(torch.cat([x, score], 1))
        return scores


def unique(manifest: Manifest) -> int:
    """Return the bytes of all distinct tensors of a bundle."""
    return sum(tensor.length for tensor in manifest.tensors.values())


def held(workload: Workload) -> list[StoredModel]:
    """Return the models of a workload with their original weights."""
    found = []
    for network in networks_of(workload).values():
        stage = network.cut.stages["main"]
        skeleton = skeleton_of(stage.module, stage.inputs["image"][:1])
        found.append(StoredModel(skeleton, network.module.state_dict(), tuple(network.cut.tensors.values())))
    return found


@pytest.mark.parametrize("net", [TinyNet, TinyTransformer, OddNet])
@pytest.mark.parametrize("shared", [True, False])
def test_models_of_all_kinds(net: type[nn.Module], shared: bool, tmp_path: Path, workload_in: Make) -> None:
    torch.manual_seed(0)
    state: Mapping[str, Tensor] = {}
    for seed, name in enumerate("ab"):
        model = trained_looking(net(), seed)
        # Each model keeps its own BatchNorm, so TinyNet's depthwise kernels are folded and then differ.
        model.load_state_dict({key: value for key, value in state.items() if value.ndim > 1 and shared}, strict=False)
        state = model.state_dict()
        save(model, tmp_path / f"{name}.safetensors")
    workload = workload_in(*(query(name, f"{net.__module__}:{net.__name__}") for name in "ab"))
    counted = bundle_bytes(held(workload))
    assert counted == unique(compile_workload(workload, tmp_path / "bundle").manifest)
    alone = sum(bundle_bytes([each]) for each in held(workload))
    assert (counted < alone) == shared


def merge(folder: Path, **settings: Any) -> MergeReport:
    """Merge the workload in ``folder`` with a short search."""
    options = MergeOptions(settings=SearchSettings(steps=24, batch=50, **settings), device="cpu")
    return merge_workload(load_workload(folder / "workload.yaml"), folder / "merged", options)


def merged(folder: Path, **settings: Any) -> tuple[MergeReport, Report]:
    """Merge the workload in ``folder`` and compile the result; return both reports."""
    report = merge(folder, **settings)
    return report, compile_workload(load_workload(folder / "merged" / "workload.yaml"), folder / "bundle")


@pytest.mark.parametrize("inside", [True, False])
def test_a_merge_reports_what_its_bundle_holds(inside: bool, trained: Path) -> None:
    report, made = merged(trained, inside=inside)
    assert report.saving > 0.2
    assert report.merged_bytes == unique(made.manifest)
    assert made.merged is not None
    assert made.merged.unique == made.merged.reported == report.merged_bytes
    # Every kernel of the shallower model has a partner in the deeper model.
    assert (report.saving == pytest.approx(report.potential)) == (not inside)


def test_models_that_are_alone_hold_what_was_reported_as_original(trained: Path) -> None:
    report = merge(trained)
    document = json.loads((trained / "workload.yaml").read_text())
    alone = 0
    for index, each in enumerate(document["queries"]):
        (trained / "alone.yaml").write_text(json.dumps({**document, "queries": [each]}))
        alone += unique(compile_workload(load_workload(trained / "alone.yaml"), trained / f"alone{index}").manifest)
    assert report.original_bytes == alone


def test_onnx_models_are_counted_alike(trained: Path) -> None:
    document = json.loads((trained / "workload.yaml").read_text())
    for each, entry in zip(load_workload(trained / "workload.yaml").queries, document["queries"], strict=True):
        cut = cut_query(each, trained)
        ir.save(export_stages(cut.stages["main"], each.name), trained / f"{each.name}.onnx")
        given = {"size": [16, 16], "mean": list(cut.input.mean), "std": list(cut.input.std)}
        entry["model"] = {"onnx": f"{each.name}.onnx", "input": given}
    (trained / "workload.yaml").write_text(json.dumps(document))
    report, made = merged(trained)
    assert report.saving > 0.4
    assert report.merged_bytes == unique(made.manifest)
    assert made.merged is not None
    assert made.merged.unique == made.merged.reported == report.merged_bytes
