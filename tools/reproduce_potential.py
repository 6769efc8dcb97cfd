"""Count the layers that torchvision's models have in common, and write the tables of docs/potential.md.

    .venv/bin/python tools/reproduce_potential.py

Takes about two minutes on two cores. Needs no data: weights are random, because which layers could hold the same
weights depends on their definitions alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
import torchvision
from documents import write_between
from rich.console import Console

from gemel.compiler.heads import cut
from gemel.merging.analysis.analysis import Analysis, ModelSizes, share_of_heaviest, sizes_of
from gemel.merging.layers.layers import Definition
from gemel.merging.models.networks import Network

DOC = Path(__file__).parent.parent / "docs" / "potential.md"

# Every family of torchvision's classifiers up to 2019. The paper does not say which 24 architectures it counted.
ARCHITECTURES = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"),
    *("squeezenet1_0", "squeezenet1_1", "densenet121", "densenet161", "densenet169"),
    *("inception_v3", "googlenet", "mobilenet_v2", "mobilenet_v3_large"),
    *("shufflenet_v2_x1_0", "mnasnet1_0", "efficientnet_b0"),
)
WORKLOADS = {
    "vgg16, vgg19": ("vgg16", "vgg19"),
    "resnet18, 34, 50, 101, 152": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "all 24": ARCHITECTURES,
}
COUNTS: Sequence[tuple[Definition, bool]] = (("strict", False), ("strict", True), ("shape", False), ("shape", True))

Profiles = Mapping[Definition, Mapping[str, ModelSizes]]


def measure(names: Iterable[str], console: Console) -> Profiles:
    """Return sizes and layers of every architecture under both definitions of layers that may share.

    Architectures are built one at a time.
    """
    found: dict[Definition, dict[str, ModelSizes]] = {"strict": {}, "shape": {}}
    for name in names:
        # Auxiliary classifiers are used in training only.
        args = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        module = getattr(torchvision.models, name)(weights=None, **args)
        network = Network(name, (), cut(module, "classification"))
        for definition, profiles in found.items():
            profiles[name] = sizes_of(network, definition)
        console.print(f"{name}: {len(found['shape'][name].layers)} layers")
    return found


def report(profiles: Profiles) -> str:
    """Return the layers and bytes that the architectures have in common as Markdown for docs/potential.md."""
    lines = [
        f"torchvision {torchvision.__version__.partition('+')[0]}; all models with 1000 classes and without auxiliary"
        f" classifiers. The {len(ARCHITECTURES)} architectures are listed in the second table: every family",
        "of torchvision's classifiers up to 2019.",
        "",
        *_pairs(profiles),
        *_heavy(profiles),
        *_workloads(profiles),
    ]
    return "\n".join(lines)


def _pairs(profiles: Profiles) -> list[str]:
    lines = [
        "## Pairs of models with a layer in common",
        "The paper states 43 % of the pairs of different models, across 24 architectures of its own choice. The figure",
        "depends on that choice: the last column is its range when any one architecture is left out.",
        "",
        "| definition | heads | pairs that share | of | | without one |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for definition, heads in COUNTS:
        found = _analysis(profiles, ARCHITECTURES, definition, heads)
        parts = []
        for name in ARCHITECTURES:
            rest = [size for pair, size in found.pairs.items() if name not in pair]
            parts.append(sum(size > 0 for size in rest) / len(rest))
        whole = _percent(found.sharing_pairs / len(found.pairs))
        lines.append(
            f"| {definition} | {_counted(heads)} | {found.sharing_pairs} | {len(found.pairs)} | {whole}"
            f" | {_percent(min(parts))} to {_percent(max(parts))} |"
        )
    return [*lines, ""]


def _heavy(profiles: Profiles) -> list[str]:
    models = profiles["shape"]
    parts = {name: share_of_heaviest(model.layers, 0.15) for name, model in models.items()}
    least, middle, most = (_percent(pick(parts.values())) for pick in (min, median, max))
    total = _percent(_analysis(profiles, ARCHITECTURES, "shape", False).heaviest(0.15))
    lines = [
        "## The heaviest 15 % of the layers",
        "Their part of the memory of all convolutions and linear layers of a model, heads included:",
        f"{least} to {most}, median {middle}; {total} over the layers of all {len(ARCHITECTURES)} models together.",
        "",
        "| model | MB | layers | MB of layers | in the top 15 % |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {model.bytes / 1e6:.1f} | {len(model.layers)} | {model.layer_bytes / 1e6:.1f}"
        f" | {_percent(parts[name])} |"
        for name, model in models.items()
    ]
    return [*lines, ""]


def _workloads(profiles: Profiles) -> list[str]:
    lines = [
        "## Potential of workloads",
        "One query a model. What sharing everything frees of all bytes, BatchNorm and biases included: between models,",
        "the k-th layer of a definition in one with the k-th in the others; and inside them too, one copy of all.",
        "The paper states 17 to 86 % for its workloads.",
        "",
        "| models | definition | heads | MB | between models, MB | | and inside, MB | |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for title, names in WORKLOADS.items():
        for definition, heads in COUNTS:
            found = _analysis(profiles, names, definition, heads)
            lines.append(
                f"| {title} | {definition} | {_counted(heads)} | {found.bytes / 1e6:.1f}"
                f" | {found.potential_bytes / 1e6:.1f} | {_percent(found.potential)}"
                f" | {found.potential_inside_bytes / 1e6:.1f} | {_percent(found.potential_inside)} |"
            )
    return lines


def _analysis(profiles: Profiles, names: Iterable[str], definition: Definition, heads: bool) -> Analysis:
    return Analysis(tuple(profiles[definition][name] for name in names), definition, heads)


def _counted(heads: bool) -> str:
    return "counted" if heads else "private"


def _percent(part: float) -> str:
    return f"{part * 100:.1f} %"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    console = Console(highlight=False)
    write_between(DOC, "figures", report(measure(ARCHITECTURES, console)))
    console.print(f"{DOC}")


if __name__ == "__main__":
    main()
