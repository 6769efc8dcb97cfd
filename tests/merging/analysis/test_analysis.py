"""Test the analysis of workloads: its figures and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from helpers import query, save
from tiny_models import tiny

from gemel.merging.analysis.analysis import Analysis, ModelSizes, analyze_workload, share_of_heaviest
from gemel.merging.analysis.page import render
from gemel.merging.layers.layers import Layer
from gemel.workload import Workload

# Bytes of TinyNet's weights at width 16: stem, depthwise, pointwise, and the classifier of three classes.
STEM, DEPTHWISE, POINTWISE, HEAD = 4 * 16 * 27, 4 * 16 * 9, 4 * 32 * 16, 4 * 3 * 32


@pytest.fixture
def workload(workload_in: Callable[..., Workload]) -> Workload:
    """Make a workload of three models.

    Queries ``a`` and ``again`` use one model, ``b`` uses a model of the same shape, and ``narrow`` a model of half the
    width, which has no layer in common with the others.
    """
    narrow = query("narrow")
    narrow["model"]["args"] = {"width": 8}
    loaded = workload_in(query("a"), {**query("a"), "name": "again"}, query("b"), narrow)
    save(tiny(0), loaded.root / "a.safetensors")
    save(tiny(1), loaded.root / "b.safetensors")
    save(tiny(2, width=8), loaded.root / "narrow.safetensors")
    return loaded


def made_up(*names: str, layers: int = 3, definition: str = "Conv2d") -> Analysis:
    """Make an analysis of models with equal layers, without building any model."""
    models = (
        ModelSizes(
            name,
            (name,),
            2_000_000 * layers,
            tuple(
                Layer(name, f"layer{index}.conv", f"{definition} {index}", (4,), 10**6 + index, False)
                for index in range(layers)
            ),
        )
        for name in names
    )
    return Analysis(tuple(models), "shape", False)


def test_figures_of_a_workload(workload: Workload) -> None:
    seen: list[str] = []
    found = analyze_workload(workload, step=lambda model: seen.append(model.name))
    figures = json.loads(json.dumps(found.to_json()))
    assert seen == list(figures["models"]) == ["a", "b", "narrow"]
    state = tiny(0).state_dict().values()
    assert figures["models"]["a"]["bytes"] == sum(value.nbytes for value in state)
    assert figures["models"]["a"]["queries"] == ["a", "again"]
    assert figures["models"]["a"]["layer_bytes"] == STEM + DEPTHWISE + POINTWISE + HEAD
    assert figures["bytes"] == sum(model["bytes"] for model in figures["models"].values())
    assert figures["query_bytes"] == figures["bytes"] + figures["models"]["a"]["bytes"]
    assert figures["potential_bytes"] == STEM + DEPTHWISE + POINTWISE
    assert figures["potential"] == figures["potential_bytes"] / figures["bytes"]
    assert figures["inside"]["potential_bytes"] == figures["potential_bytes"]
    assert figures["pairs"] == {"total": 3, "sharing": 1}
    assert figures["shareable"]["a"] == {"b": figures["potential_bytes"], "narrow": 0}
    assert figures["groups"][0] == {
        "definition": "Conv2d 32x16x1x1",
        "appearances": 2,
        "bytes": POINTWISE,
        "saving": POINTWISE,
        "saving_inside": POINTWISE,
        "models": {"a": 1, "b": 1},
    }
    assert sum(group["saving"] for group in figures["groups"]) == figures["potential_bytes"]


def test_heads_and_strictness(workload: Workload) -> None:
    assert analyze_workload(workload, heads=True).potential_bytes == STEM + DEPTHWISE + POINTWISE + HEAD
    strict = analyze_workload(workload, "strict")
    assert strict.potential_bytes == STEM + DEPTHWISE + POINTWISE
    assert strict.groups[0].definition.startswith("Conv2d(")


def test_potential_does_not_depend_on_what_weights_hold(workload: Workload) -> None:
    before = analyze_workload(workload).to_json()
    save(tiny(0), workload.root / "b.safetensors")
    assert analyze_workload(workload).to_json() == before


def test_resnets_share_all_of_the_smaller(
    workload_in: Callable[..., Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)  # takes most of the time
    queries = []
    for name in ("resnet18", "resnet34"):
        queries.append(query(name, f"torchvision.models:{name}"))
        del queries[-1]["model"]["weights"]
    with pytest.warns(UserWarning, match="no weights given"):
        found = analyze_workload(workload_in(*queries))
    small = found.models[0]
    assert found.potential_bytes == small.layer_bytes - 4 * 512 * 1000
    assert found.potential == pytest.approx(44_667_648 / (46_796_608 + 87_259_072))


def test_the_heaviest_layers() -> None:
    layers = [Layer("a", str(size), "x", (size,), size, False) for size in (70, 10, 10, 10)]
    assert share_of_heaviest(layers, 0) == 0
    assert share_of_heaviest(layers, 0.25) == pytest.approx(0.7)
    assert share_of_heaviest(layers, 0.125) == pytest.approx(0.35)  # half of the heaviest layer
    assert share_of_heaviest(layers, 1) == 1
    assert share_of_heaviest([], 0.15) == 0


class Page(HTMLParser):
    """Parser that collects the ids, the references and the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                self.references.append(value or "")

    handle_startendtag = handle_starttag


@pytest.mark.parametrize(
    "found",
    [
        made_up("cars", "people"),
        made_up("alone"),
        made_up(*(f"camera-{index}-with-a-long-name" for index in range(30)), layers=8),
        Analysis((made_up("a").models[0], made_up("b", definition="Linear").models[0]), "strict", True),
    ],
    ids=["two", "one", "many", "nothing shared"],
)
def test_the_page_holds_everything_it_needs(found: Analysis) -> None:
    text = render(found, "workload.yaml")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {"script", "link", "img", "iframe", "image"}.isdisjoint(page.tags)
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert all(target in page.ids for target in re.findall(r"url\(#([^)]+)\)", text))
    assert "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text
    assert "#01020" not in text  # no placeholder colour is left
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2 + (len(found.models) > 1) + bool(found.groups)
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert render(found, "workload.yaml") == text


def test_names_cannot_break_the_page() -> None:
    found = made_up("a", "b", definition='<b>$x$ & "quoted"</b>')
    text = render(found, "<script>alert(1)</script>")
    assert "<script" not in text
    assert "<b>" not in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
