"""Queries share a stem where that is faster, on ort-cpu: which programs are there, and what they compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemel.bundles.reader import MANIFEST, Bundle, open_bundle
from gemel.errors import BackendError, BundleError
from gemel.runtime.backends.ort_cpu import OrtCpu
from gemel.runtime.backends.protocol import StemTimes
from gemel.runtime.backends.share_stems import shared_stems
from gemel.runtime.ort import bake_stems, baked
from gemel.runtime.ort.bake import bake
from gemel.runtime.ort.baked import CACHE_RECORD, load_cache
from gemel.runtime.ort.copy_times import open_stage
from gemel.runtime.ort.optimise import optimise

FAST = StemTimes(10.0, 6.0, 4.0)


def test_queries_of_one_feed_share_a_stem(stems: Bundle) -> None:
    content = stems.manifest
    spec = content.models["a"].stem
    assert spec is not None
    times = {"a": FAST, "b": FAST}
    assert shared_stems(content, times, content.queries) == {"a": spec.id, "b": spec.id}
    # Alone, a model runs whole: no other query of the feed runs, or the backend has no parts of its model.
    assert shared_stems(content, times, ["a", "c"]) == {}
    assert shared_stems(content, {"a": FAST}, content.queries) == {}
    elsewhere = {**content.queries, "b": content.queries["b"].model_copy(update={"feed": "gate"})}
    assert shared_stems(content.model_copy(update={"queries": elsewhere}), times, content.queries) == {}


@pytest.mark.parametrize(("rest_ms", "shared"), [(6.4, 2), (6.6, 0)])
def test_a_stem_is_shared_where_that_is_faster(stems: Bundle, rest_ms: float, shared: int) -> None:
    # Whole: 20 ms. In parts: 6 ms and the two rests, which must be less than 95 % of that.
    times = dict.fromkeys("ab", StemTimes(10.0, 6.0, rest_ms))
    assert len(shared_stems(stems.manifest, times, "abc")) == shared


def test_two_queries_of_one_model_share_its_stem_too(stems: Bundle) -> None:
    content = stems.manifest
    twice = {**content.queries, "again": content.queries["a"]}
    assert set(shared_stems(content.model_copy(update={"queries": twice}), {"a": FAST}, twice)) == {"a", "again"}


def answers(backend: OrtCpu, model: str, spec: Any, image: Any) -> tuple[Any, Any]:
    """Return the outputs of a model run whole and in parts."""
    backend.activate(model)
    whole = backend.run(model, "main", {spec.stages["main"].inputs[0].name: image})
    values = {spec.stem.stem.inputs[0].name: image}
    values |= backend.run(model, "stem", values)
    parts = backend.run(model, "rest", {port.name: values[port.name] for port in spec.stem.rest.inputs})
    backend.release(model)
    return whole, parts


def test_parts_give_the_answers_of_the_whole(stems: Bundle) -> None:
    image = np.random.default_rng(1).random((2, 3, 16, 16), np.float32)
    with OrtCpu(stems) as backend:
        assert set(backend.stems) == {"a", "b"}
        for model in "ab":
            whole, parts = answers(backend, model, stems.manifest.models[model], image)
            assert whole.keys() == parts.keys()
            for name in whole:
                np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4)
        sessions = len(backend._sessions)
        # All models have one program; a and b one stem, and the program of the rest.
        assert sessions == 3
        with pytest.raises(BackendError, match="model c, stage stem"):
            backend.activate("c")
            backend.run("c", "stem", {"image": image})


def test_baked_parts_need_no_tensors_of_their_own(stems: Bundle, tmp_path: Path) -> None:
    made = bake(stems)
    document = json.loads((stems.path / MANIFEST).read_text())
    for model in document["models"].values():
        model["stem"] = None
    (stems.path / MANIFEST).write_text(json.dumps(document))
    plain = bake(open_bundle(stems.path))
    assert not plain.stems
    assert (made.tensors, made.segments, made.segments_of) == (plain.tensors, plain.segments, plain.segments_of)
    assert made.files.keys() - plain.files.keys() == {
        made.program(part.program).name for stem in made.stems.values() for part in (stem.stem, stem.rest)
    }


def test_parts_with_another_layout_than_the_whole_are_left_out(stems: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = stems.manifest.models["b"].stem
    assert rest is not None

    def other_layout(path: Path, *given: Any) -> Any:
        program, arrays = optimise(path, *given)
        return program, [2 * each for each in arrays] if path.name == rest.rest.file else arrays

    monkeypatch.setattr(bake_stems, "optimise", other_layout)
    assert set(bake(stems).stems) == {"a"}


@pytest.mark.parametrize("part", ["optimise", "open_stage"])
def test_a_stem_that_cannot_be_baked_or_run_is_left_out(
    stems: Bundle, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: Any) -> None:
        raise BackendError("refused\nby the test")

    monkeypatch.setattr(bake_stems, part, refuse)
    assert not bake(stems).stems
    assert "model a: runs whole, its stem cannot be used: refused" in caplog.text
    with OrtCpu(stems) as backend:
        assert backend.stems == {}


def test_baked_parts_that_give_other_outputs_are_left_out(
    stems: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    class Wrong:
        def __init__(self, *given: Any) -> None:
            self.inner = open_stage(*given)

        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            return {name: -array for name, array in self.inner.run(inputs).items()}

    monkeypatch.setattr(bake_stems, "open_stage", Wrong)
    assert not bake(stems).stems
    assert "model b: runs whole, its stem cannot be used: its parts give other outputs" in caplog.text


def test_a_device_cache_whose_stem_uses_other_tensors_is_refused(stems: Bundle) -> None:
    folder = bake(stems).folder
    document = json.loads((folder / CACHE_RECORD).read_text())
    document["stems"]["a"]["rest"]["weights"][0] = document["models"]["c"]["main"]["weights"][0]
    document["digest"] = baked._digest(document)
    (folder / CACHE_RECORD).write_text(json.dumps(document))
    with pytest.raises(
        BundleError, match=r"cache\.json: models\.a: its stem refers to tensors that 'main' does not use"
    ):
        load_cache(folder, stems)


def test_a_program_of_a_stem_that_is_missing_is_noticed(stems: Bundle) -> None:
    made = bake(stems)
    made.program(made.stems["a"].rest.program).unlink()
    with pytest.raises(BundleError, match=r"missing|No such file"):
        load_cache(made.folder, stems)


Change = Callable[[Mapping[str, Any]], object]
BAD: list[tuple[Change, str]] = [
    (lambda models: models["a"]["stem"].pop("rest"), r"models\.a\.stem\.rest: Field required"),
    (lambda models: models["a"].update(mode="constant"), r"models\.a\.stem: a model of mode constant"),
    (lambda models: models["a"].update(precision="int8"), r"models\.a\.stem: a model of mode bound and precision int8"),
    (lambda models: models["a"]["stages"].update(rest=models["a"]["stages"]["main"]), "has a stage 'rest' of its own"),
    (lambda models: models["a"]["stem"]["stem"].update(file="no.onnx"), r"models\.a\.stem: no\.onnx is not listed"),
    (lambda models: models["a"]["stem"]["rest"]["weights"].append("0" * 32), r"models\.a\.stem: a\.rest\.onnx is not"),
    (lambda models: models["a"]["stem"]["rest"]["inputs"][0].update(name="z"), r"models\.a\.stem: 'rest' takes other"),
    (lambda models: models["a"]["stem"]["rest"]["outputs"].clear(), r"models\.a\.stem: 'rest' has other outputs"),
    (lambda models: models["b"]["input"].update(scale=1.0), r"models\.b\.stem: is not the stem of models\.a"),
    (lambda models: models["b"]["stem"]["stem"].update(program="0" * 32), r"models\.b\.stem: is not the stem of"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_manifests(stems: Bundle, change: Change, message: str) -> None:
    document = json.loads((stems.path / MANIFEST).read_text())
    change(document["models"])
    (stems.path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        open_bundle(stems.path)
