"""Original weights in a bundle: reverts in any order, what they leave alone, deltas, addresses, and what goes wrong."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from delta_bundles import content_of, delta_between
from form_bundles import FORMS
from helpers import query, save, write_video
from numpy.typing import NDArray
from reloads import compiled
from reverts import answers, waiting, with_address, with_originals
from tiny_models import tiny

from gemel.bundles import write_arranged
from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.blob import Layout
from gemel.bundles.manifest import Manifest
from gemel.bundles.merged_tensors import merged_tensors
from gemel.bundles.originals import add_originals, originals_bytes, with_exchanged
from gemel.bundles.reader import MANIFEST, open_bundle, verify
from gemel.bundles.replace_bundle import alone_with
from gemel.bundles.revert_bundle import revert_queries
from gemel.bundles.rounded_bundle import write_rounded
from gemel.bundles.signature import read_public_key
from gemel.compiler import compile_workload
from gemel.errors import BackendError, BundleError, InputError
from gemel.workload import load_workload


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``original``, ``merged``, ``both`` (with original weights) and ``away`` (with an address).

    The merge has made kernels of the models a and b equal, and left that of d alone. Query c has the model of a.
    """
    folder = tmp_path_factory.mktemp("originals")
    write_video(folder / "yard.mp4")
    first, fourth = tiny(0), tiny(3)
    for kind, second in (("merged", tiny(1, kernels_of=first)), ("original", tiny(1))):
        (folder / kind).mkdir()
        for name, model in (("a", first if kind == "merged" else tiny(7)), ("b", second), ("d", fourth)):
            save(model, folder / kind / f"{name}.safetensors")
        document = {
            "schema_version": "1",
            "feeds": {"yard": {"source": str(folder / "yard.mp4"), "fps": 10}},
            "queries": [query("a"), query("b"), {**query("a"), "name": "c"}, query("d")],
        }
        (folder / kind / "workload.yaml").write_text(json.dumps(document))
        compile_workload(load_workload(folder / kind / "workload.yaml"), folder / kind / "bundle")
    sources = folder / "merged" / "bundle", folder / "original" / "bundle"
    with_originals(*sources, folder / "both")
    with_address(*sources, folder / "away", folder / "deltas")
    return folder


@pytest.fixture
def box(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle with original weights."""
    return Path(shutil.copytree(made / "both", tmp_path / "box" / "bundle"))


@pytest.fixture
def away(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the bundle that knows where its original weights are."""
    return Path(shutil.copytree(made / "away", tmp_path / "box" / "bundle"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_waits_is_not_loaded(made: Path, box: Path) -> None:
    content, before = open_bundle(box).manifest, open_bundle(made / "merged" / "bundle").manifest
    # The models that run find their weights where they were.
    assert (content.segments, content.models, content.programs) == (before.segments, before.models, before.programs)
    assert {name: content.tensors[name] for name in before.tensors} == before.tensors
    assert content.originals is not None and set(content.originals.models) == {"a", "b"}
    assert waiting(content) == {*content.tensors} - {*before.tensors}
    # What both have is stored once.
    original = open_bundle(made / "original" / "bundle").manifest
    of_both = {weight for name in "ab" for weight in original.models[name].weights}
    assert waiting(content) == of_both - {*before.tensors}
    assert originals_bytes(content) == sum(original.tensors[name].length for name in of_both - {*before.tensors})
    assert list(verify(open_bundle(box)))


def test_one_query_is_reverted_and_the_others_answer_the_same(made: Path, box: Path) -> None:
    before, original = answers(box, "abcd"), answers(made / "original" / "bundle", "abcd")
    done = revert_queries(box, ["b"])
    after = answers(box, "abcd")
    assert {name: after[name] == before[name] for name in "abcd"} == {"a": True, "b": False, "c": True, "d": True}
    assert after["b"] == original["b"]
    content = done.bundle.manifest
    assert content.reverted == {"b"} and done.along == ()
    # Nothing of b is shared any more.
    assert [spec.models for spec in content.segments.values() if len(spec.models) > 1] == []
    assert done.before == open_bundle(made / "both").id and done.bundle.id == open_bundle(box).id != done.before


def test_queries_with_one_model_go_together(made: Path, box: Path) -> None:
    done = revert_queries(box, ["c"])
    assert done.along == ("a",) and done.bundle.manifest.reverted == {"a"}
    original = answers(made / "original" / "bundle", "ac")
    assert answers(box, "ac") == original


def test_any_order_and_back(made: Path, box: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(box, tmp_path / "other"))
    for name in "ab":
        revert_queries(box, [name])
    for name in "bc":
        revert_queries(other, [name])
    assert content_of(box) == content_of(other)
    assert answers(box, "abc") == answers(made / "original" / "bundle", "abc")
    revert_queries(other, ["a"], undo=True)
    assert answers(other, "ab") == {
        "a": answers(made / "both", "a")["a"],
        "b": answers(made / "original" / "bundle", "b")["b"],
    }
    shutil.rmtree(other / "device-cache")
    # Byte for byte the bundle that deltas from the merger start from.
    revert_queries(other, ["b"], undo=True)
    revert_queries(box, ["b", "a"], undo=True)
    assert (
        content_of(other)
        == content_of(box)
        == {name: digest for name, digest in content_of(made / "both").items() if "device-cache" not in name}
    )


def test_any_tool_opens_the_files_that_wait(made: Path, box: Path) -> None:
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)

    def run(path: Path) -> NDArray[Any]:
        session = onnxruntime.InferenceSession(str(path))
        shape = session.get_inputs()[0].shape
        frame = image[:, :, : shape[2], : shape[3]]
        found: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: frame})[0]
        return found

    for folder in (box, revert_queries(box, ["a"]).bundle.path):
        for name in "ab":
            assert np.array_equal(run(folder / f"{name}.onnx"), run(made / "merged" / "bundle" / f"{name}.onnx"))
            original = run(made / "original" / "bundle" / f"{name}.onnx")
            assert np.array_equal(run(folder / f"{name}.original.onnx"), original)


def test_kernels_that_are_computed(form_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    for index, name in enumerate(FORMS):
        save(tiny(30 + index, width=24), tmp_path / "original" / f"{name}.safetensors")
    shutil.copy(form_folder / "workload.yaml", tmp_path / "original")
    compile_workload(load_workload(tmp_path / "original" / "workload.yaml"), tmp_path / "original" / "bundle")
    box = with_originals(form_folder / "bundle", tmp_path / "original" / "bundle", tmp_path / "box")
    first = content_of(box)
    merged, original = answers(form_folder / "bundle", "ab"), answers(tmp_path / "original" / "bundle", "ab")
    content = revert_queries(box, ["a"]).bundle.manifest
    assert content.originals is not None
    # Kernels of a wait with their forms; the base that both had is still there for b.
    assert content.originals.forms.keys() == {
        weight for weight in content.originals.models["a"].model.weights if weight in content.originals.forms
    }
    assert content.originals.forms and content.forms and not content.forms.keys() & content.originals.forms.keys()
    assert answers(box, "ab") == {"a": original["a"], "b": merged["b"]}
    revert_queries(box, ["b"])
    assert open_bundle(box).manifest.forms == {} and open_bundle(box).manifest.schema_version == "1.0"
    assert answers(box, "ab") == original
    revert_queries(box, ["b", "a"], undo=True)
    assert content_of(box) == first


def test_a_delta_of_a_revert_carries_no_weights(made: Path, box: Path, tmp_path: Path) -> None:
    # The merger reverts its copy, and gets the bundle that the box has.
    revert_queries(box, ["b"])
    delta = delta_between(made / "both", box, tmp_path / "revert.delta")
    far = Path(shutil.copytree(made / "both", tmp_path / "far"))
    done = apply_delta(delta, far)
    assert done.new_bytes == 0 and done.bundle.manifest.reverted == {"b"}
    assert content_of(far) == content_of(box)
    assert revert_queries(far, ["b"], undo=True).bundle.id == open_bundle(made / "both").id


def test_originals_come_with_a_delta_and_are_not_rounded(made: Path, tmp_path: Path) -> None:
    plain = made / "merged" / "bundle"
    written = write_rounded(open_bundle(plain), open_bundle(made / "both"), tmp_path / "rounded")
    assert not written.bases
    delta = delta_between(plain, made / "both", tmp_path / "add.delta")
    box = Path(shutil.copytree(plain, tmp_path / "box"))
    done = apply_delta(delta, box)
    assert done.new_bytes == originals_bytes(open_bundle(made / "both").manifest)
    assert revert_queries(box, ["b"]).bundle.manifest.reverted == {"b"}


def test_memory_is_known_before(made: Path, box: Path) -> None:
    expected = with_exchanged(open_bundle(box).manifest, ["b"])
    made_content = revert_queries(box, ["b"]).bundle.manifest
    assert expected.segments == made_content.segments and expected.tensors == made_content.tensors
    whole = sum(model.bytes for model in made_content.models.values())
    assert sum(made_content.tensors[each].length for each in made_content.resident) == whole


def test_merged_tensors_leave_out_what_is_private(box: Path) -> None:
    uses = [{"query": name, "parameter": "head.weight"} for name in "ab"]
    figures = dict.fromkeys(("saving", "layer_saving", "potential"), 0.5)
    sizes = dict.fromkeys(("seed", "original_bytes", "merged_bytes", "layer_bytes"), 1)
    report = {"schema_version": "1.0", "strategy": "together", "finished": True, "queries": {}, "trials": []}
    shared = [{"tensor": "0" * 32, "bytes": 4, "uses": uses}]
    (box / "merge.json").write_text(json.dumps({**report, **figures, **sizes, "shared": shared}))
    content = json.loads((box / MANIFEST).read_text())
    content["files"]["merge.json"] = {
        "bytes": (box / "merge.json").stat().st_size,
        "sha256": content_of(box)["merge.json"],
    }
    (box / MANIFEST).write_text(json.dumps(content))
    assert [(each.name, each.copies) for each in merged_tensors(open_bundle(box))] == [("a: head.weight", 1)]
    reverted = revert_queries(box, ["a"]).bundle
    assert [(each.name, each.copies) for each in merged_tensors(reverted)] == [("b: head.weight", 1)]
    assert not [*merged_tensors(revert_queries(box, ["b"]).bundle)]


@pytest.mark.parametrize(
    ("queries", "undo", "message"),
    [
        (["a", "x"], False, "has no query 'x'; it has a, b, c, d"),
        (["x"], True, "has no query 'x'; it has a, b, c, d"),
        (["a"], True, "query a is not reverted"),
        (["d"], True, "query d is not reverted"),
        (["a", "d"], False, "query d has its original weights: the merge did not change its model"),
        (["a", "b"], False, "query b is already reverted to its original weights"),
    ],
)
def test_mistakes_change_nothing(queries: list[str], undo: bool, message: str, box: Path) -> None:
    revert_queries(box, ["b"])
    before = content_of(box)
    with pytest.raises(InputError, match=message):
        revert_queries(box, queries, undo=undo)
    assert content_of(box) == before and names(box.parent) == ["bundle"]


def test_a_bundle_without_originals(made: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(made / "merged" / "bundle", tmp_path / "plain"))
    with pytest.raises(InputError, match="has no original weights of query a; gemel-compile --originals puts them"):
        revert_queries(plain, ["a"])
    with pytest.raises(InputError, match="query a is not reverted"):
        revert_queries(plain, ["a"], undo=True)


def test_fetched_where_they_are(made: Path, away: Path) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec (the extra pull)")
    before, first = content_of(away), answers(away, "abcd")
    shutil.rmtree(away / "device-cache")
    assert not waiting(open_bundle(away).manifest)
    done = revert_queries(away, ["b"])
    assert done.fetched == next((made / "deltas").iterdir()).stat().st_size
    assert done.before == open_bundle(made / "away").id and done.bundle.manifest.reverted == {"b"}
    found = answers(away, "abcd")
    assert found == {**first, "b": answers(made / "original" / "bundle", "b")["b"]}
    assert revert_queries(away, ["a"]).fetched == 0
    revert_queries(away, ["a"], undo=True)
    assert waiting(open_bundle(away).manifest)
    # With the last one the originals go, so that deltas from the merger fit again.
    revert_queries(away, ["b"], undo=True)
    assert content_of(away) == before and names(away.parent) == ["bundle"]


def test_what_cannot_be_fetched(made: Path, away: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec (the extra pull)")
    pytest.importorskip("cryptography", reason="needs cryptography (the extra sign)")
    before, (delta,) = content_of(away), (made / "deltas").iterdir()
    kept = delta.read_bytes()

    def refused(message: str, error: type[Exception] = BundleError, query: str = "b", **options: Any) -> None:
        with pytest.raises(error, match=message):
            revert_queries(away, [query], **options)
        assert content_of(away) == before
        # What was fetched is kept for the next time.
        (away.parent / ".bundle.pull").unlink(missing_ok=True)
        assert names(away.parent) == ["bundle"]

    try:
        refused("has no query 'x'", InputError, "x")
        refused(f"^{away}: query d has its original weights: the merge did not change its model", InputError, "d")
        key = tmp_path / "key.pub"
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "key.pem"], check=True)
        subprocess.run(["openssl", "pkey", "-in", tmp_path / "key.pem", "-pubout", "-out", key], check=True)
        refused("is not signed", key=read_public_key(key))
        delta.write_bytes(kept[:-5])
        refused("is cut off")
        delta.unlink()
        refused(f"{delta.parent}: has no delta with the original weights of")
        # A delta of the merger in the wrong folder is not applied.
        delta_between(away, made / "original" / "bundle", delta)
        refused("brings more than original weights, or none; it is not applied")
    finally:
        delta.write_bytes(kept)
    nowhere = with_address(made / "merged" / "bundle", made / "original" / "bundle", tmp_path / "c", tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(InputError, match="is no delta and no folder of deltas"):
        revert_queries(nowhere, ["a"])
    server = "http://127.0.0.1:9/originals"
    with_address(made / "merged" / "bundle", made / "original" / "bundle", tmp_path / "e", tmp_path / "f", server)
    pytest.importorskip("aiohttp", reason="needs aiohttp (the extra pull)")
    from gemel.bundles import delta_store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_store, "_TRIES", 1)
        with pytest.raises(BackendError, match="no answer"):
            revert_queries(tmp_path / "e", ["a"])


def test_a_damaged_bundle_is_not_copied(box: Path) -> None:
    data = bytearray((box / "weights.bin").read_bytes())
    content = open_bundle(box).manifest
    tensor = min(waiting(content))
    data[content.tensors[tensor].offset] ^= 1
    (box / "weights.bin").write_bytes(data)
    with pytest.raises(BundleError, match=rf"weights\.bin: content is damaged: tensor {tensor}"):
        revert_queries(box, ["b"])
    (box / "b.original.onnx").write_bytes((box / "b.original.onnx").read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="content is damaged"):
        revert_queries(box, ["b"])
    assert names(box.parent) == ["bundle"]


def test_a_full_disk(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_of(box)

    def write_blob(path: Path, placed: Layout, read: Callable[[str], NDArray[Any]]) -> str:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write_arranged, "write_blob", write_blob)
    with pytest.raises(BundleError, match="bundle: cannot be written: No space left on device"):
        revert_queries(box, ["b"])
    assert content_of(box) == before and names(box.parent) == ["bundle"]


KILLS = """
import os, signal, sys
from pathlib import Path
from gemel import durable
from gemel.bundles import write_arranged
from gemel.bundles.reader import open_bundle, verify
from gemel.bundles.revert_bundle import revert_queries

bundle = Path(sys.argv[1])
before = open_bundle(bundle).id


def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call


kills, old = 0, 0
while open_bundle(bundle).id == before:
    kills += 1
    child = os.fork()
    if child == 0:
        left = kills
        write_arranged.write_blob = dying(write_arranged.write_blob)
        write_arranged._with_places = dying(write_arranged._with_places)
        durable._sync = dying(durable._sync)
        durable._exchange = dying(durable._exchange)
        revert_queries(bundle, ["b"])
        os._exit(0)
    os.waitpid(child, 0)
    old += open_bundle(bundle).id == before
    list(verify(open_bundle(bundle)))
try:
    revert_queries(bundle, ["b"])
except Exception as error:
    print(error)
revert_queries(bundle, ["b"], undo=True)
print(old, open_bundle(bundle).id == before, sorted(path.name for path in bundle.parent.iterdir()))
"""


def test_killed_at_each_step(box: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLS, str(box)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told, counts = done.stdout.splitlines()
    assert told.endswith("query b is already reverted to its original weights")
    old, rest = counts.split(maxsplit=1)
    assert int(old) > 8 and rest == "True ['bundle']"


def test_one_at_a_time(box: Path) -> None:
    with alone_with(box), pytest.raises(BundleError, match="another process replaces it"):
        revert_queries(box, ["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda other: other.pop("main"), "originals.models.b: a stage 'main' with at least one input"),
        (lambda other: other["main"].update(file="x.onnx"), "originals.models.b: x.onnx refers to a tensor or file"),
        (lambda other: other["main"]["weights"].append("0" * 32), "refers to a tensor or file that is not listed"),
    ],
)
def test_a_manifest_that_lies(change: Callable[[dict[str, Any]], object], message: str, box: Path) -> None:
    content = json.loads((box / MANIFEST).read_text())
    change(content["originals"]["models"]["b"]["model"]["stages"])
    (box / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=message):
        open_bundle(box)


def test_a_manifest_with_originals_of_nobody(box: Path) -> None:
    content = json.loads((box / MANIFEST).read_text())
    content["originals"]["models"]["x"] = content["originals"]["models"]["b"]
    (box / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"originals\.models\.x: there is no such model"):
        open_bundle(box)


def test_originals_that_do_not_fit(made: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "yard.mp4")
    one = compiled(tmp_path / "one", "ab")

    def refused(original: Path, message: str, change: Callable[[Manifest], Manifest] | None = None) -> None:
        merged, before = open_bundle(one), open_bundle(original)
        if change is not None:
            merged.manifest = change(merged.manifest)
        (tmp_path / "work").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            add_originals(merged, before, tmp_path / "work")

    def renamed(content: Manifest) -> Manifest:
        return content.model_copy(update={"queries": {"x": content.queries["a"], "b": content.queries["b"]}})

    def one_model(content: Manifest) -> Manifest:
        query = content.queries["b"].model_copy(update={"model": "a"})
        models = {"a": content.models["a"]}
        return content.model_copy(update={"queries": {"a": content.queries["a"], "b": query}, "models": models})

    refused(one, "its models are those of .*; there is nothing to revert to")
    refused(made / "original" / "bundle", "query a has another task or other labels than in")
    refused(one, "has no query 'x', which", renamed)
    refused(one, "queries a and b have models of their own, a and b; in .* they have one model, a", one_model)
