"""Original weights on the command line: ``gemel-compile --originals``, ``revert`` and ``drift --revert``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from delta_bundles import content_of, delta_between, noise, retrained
from drift_samples import put_sample
from helpers import edit_json, write_video
from reloads import Run, compiled
from reverts import answers, waiting, with_originals
from small_bundle import write_model, write_workload

from gemel.bundles.reader import open_bundle
from gemel.check.drift import bundle_answers, follow
from gemel.cli.drift import REVERT_EXIT
from gemel.runtime.decode.results import Class

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with workloads and bundles, ``merged`` and ``original``, and a bundle ``both``.

    Model c is the same before and after the merge.
    """
    folder = tmp_path_factory.mktemp("reverts")
    write_video(folder / "yard.mp4", 30, fps=25)
    merged, original = compiled(folder / "merged", "abc"), compiled(folder / "original", "abc", changed="ab")
    with_originals(merged, original, folder / "both")
    return folder


@pytest.fixture
def box(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "both", tmp_path / "box" / "bundle"))


def test_compiled_with_originals(made: Path, tmp_path: Path, gemel: Gemel) -> None:
    command = ("compile", made / "merged" / "workload.yaml", "-o", tmp_path / "bundle")
    code, out, err = gemel(*command, "--originals", made / "original" / "workload.yaml")
    assert code == 0, err
    assert "more on disk, not loaded, for gemel revert of a, b" in out
    assert "a revert of one query takes at most 0.0 MB more memory" in out
    assert content_of(tmp_path / "bundle") == content_of(made / "both")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]

    code, out, _ = gemel("inspect", tmp_path / "bundle", "--json", tmp_path / "bundle.json")
    found = json.loads((tmp_path / "bundle.json").read_text())
    assert code == 0 and "wait in the bundle and are not loaded" in out
    content = open_bundle(tmp_path / "bundle").manifest
    assert found["originals"]["bytes"] == sum(content.tensors[each].length for each in waiting(content))
    # Heads are all that a and b have of their own, merged or not.
    assert {name: each["unique_bytes"] for name, each in found["originals"]["models"].items()} == dict.fromkeys(
        "ab", found["bytes"]["unique"]
    )
    plain = {**found["bytes"], "file": 0}
    assert gemel("inspect", made / "merged" / "bundle", "--json", tmp_path / "plain.json")[0] == 0
    without = json.loads((tmp_path / "plain.json").read_text())
    assert plain == {**without["bytes"], "file": 0} and without["originals"] is None


def test_compiled_with_an_address(made: Path, tmp_path: Path, gemel: Gemel) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec (the extra pull)")
    command = ("compile", made / "merged" / "workload.yaml", "-o", tmp_path / "bundle")
    originals = ("--originals", made / "original" / "bundle")
    code, out, err = gemel(*command, *originals, "--originals-at", tmp_path / "deltas")
    assert code == 0, err
    (delta,) = (tmp_path / "deltas").iterdir()
    assert "originals     " in out and str(delta) in out
    assert not waiting(open_bundle(tmp_path / "bundle").manifest)
    code, out, _ = gemel("inspect", tmp_path / "bundle")
    assert code == 0 and f"original weights: at {tmp_path / 'deltas'}; gemel revert fetches them" in out
    code, out, err = gemel("revert", tmp_path / "bundle", "a")
    assert code == 0, err
    assert "original weights came in a delta of 0.0" in out
    assert open_bundle(tmp_path / "bundle").manifest.reverted == {"a"}

    address = "https://example.org/originals?key=s3cret"
    code, out, err = gemel(*command, *originals, "--originals-at", address)
    assert code == 0, err
    assert "put it into the folder that --originals-at names" in out and "s3cret" not in out
    assert len([*(tmp_path / "bundle-originals").iterdir()]) == 1
    assert "s3cret" not in gemel("inspect", tmp_path / "bundle")[1]


def test_an_entry_without_original_weights_is_as_none(made: Path, tmp_path: Path, gemel: Gemel) -> None:
    bundle = Path(shutil.copytree(made / "merged" / "bundle", tmp_path / "bundle"))
    before = gemel("inspect", bundle)[1]
    edit_json(bundle / "manifest.json", lambda document: document.update(originals={}))
    code, out, err = gemel("inspect", bundle)
    assert (code, err) == (0, "")
    assert "original weights" not in out and len(out.splitlines()) == len(before.splitlines())


def test_mistakes_of_compile(made: Path, tmp_path: Path, gemel: Gemel) -> None:
    workload = made / "merged" / "workload.yaml"
    for flags, message in (
        (("--originals-at", "x"), "--originals-at: give --originals with it, of which the delta is made"),
        (("--originals", tmp_path / "none"), f"--originals: {tmp_path / 'none'}: is not there"),
        (("--originals", workload), f"--originals: {workload} is the workload that is compiled"),
        (("--originals", made / "merged" / "bundle"), "there is nothing to revert to"),
        (("--originals", made / "yard.mp4"), "a bundle of the original models, or their workload.yaml, is expected"),
    ):
        code, _, err = gemel("compile", workload, "-o", tmp_path / "bundle", *flags)
        assert (code, message in err) == (2, True), err
        assert not [*tmp_path.iterdir()]


def test_what_revert_prints(made: Path, box: Path, tmp_path: Path, gemel: Gemel) -> None:
    first = open_bundle(box).id
    code, out, err = gemel("revert", box, "a", "--json", tmp_path / "revert.json")
    assert (code, err) == (0, "")
    now = open_bundle(box).id
    one, last = out.splitlines()
    assert one.startswith(f"{box}: a now with original weights; bundle {first[:12]} is now {now[:12]}, with 0.02 MB")
    assert last == f"Next: gemel reload {box} --port PORT"
    found = json.loads((tmp_path / "revert.json").read_text())
    assert (found["before"], found["after"], found["reverted"], found["along"]) == (first, now, ["a"], [])
    assert "reverted   --undo" in gemel("inspect", box)[1]
    assert gemel("check", box)[0] == 0
    code, out, err = gemel("revert", box, "a")
    assert (code, out) == (2, "")
    assert err == f"error: {box}: query a is already reverted to its original weights\n"
    code, out, _ = gemel("revert", box, "a", "--undo")
    assert code == 0 and "a now with merged weights" in out
    assert open_bundle(box).id == first


def test_queries_that_go_along_are_named(tmp_path: Path, gemel: Gemel) -> None:
    # Query bikes has the model of people.
    merged, original = (write_workload(tmp_path / kind) for kind in ("merged", "original"))
    write_model(original.with_name("people.onnx"), 7)
    code, _, err = gemel("compile", merged, "-o", tmp_path / "bundle", "--originals", original)
    assert code == 0, err
    code, out, _ = gemel("revert", tmp_path / "bundle", "people")
    assert code == 0 and out.splitlines()[1] == "bikes too: it has the same model"
    code, out, _ = gemel("revert", tmp_path / "bundle", "people", "bikes", "--undo")
    assert code == 0 and "too: " not in out


def test_a_delta_leaves_reverts(made: Path, box: Path, tmp_path: Path, gemel: Gemel) -> None:
    new = with_originals(
        retrained(made / "merged" / "bundle", tmp_path / "next", noise(0.1)),
        made / "original" / "bundle",
        tmp_path / "new",
    )
    delta = delta_between(box, new, tmp_path / "step.delta")
    assert gemel("revert", box, "b")[0] == 0
    code, out, err = gemel("apply", delta, box, "--json", tmp_path / "apply.json")
    assert (code, err) == (0, "")
    undo = f"gemel revert {box} b --undo"
    assert out.splitlines()[1] == f"b still has its original weights; {undo} goes on to the merged ones"
    assert json.loads((tmp_path / "apply.json").read_text())["reverted"] == ["b"]
    assert gemel(*undo.split()[1:])[0] == 0
    assert open_bundle(box).id == open_bundle(new).id


def test_a_run_goes_on_with_a_reverted_query(made: Path, box: Path, gemel: Gemel) -> None:
    pytest.importorskip("prometheus_client", reason="needs prometheus-client (the extra service)")
    run = Run(box)
    try:
        for name in "abc":
            run.wait_for(name, 40)
        before = {name: run.sink.count(name) for name in "abc"}
        code, out, err = gemel("revert", box, "b", "--port", str(run.port))
        assert code == 0, err
        assert f"{box} runs now" in out
        after = {name: run.sink.count(name) + 3 for name in "abc"}
        for name in "abc":
            # More than a lap of the looped clip, so that frames are seen before and after.
            run.wait_for(name, 40)
        assert run.status["reloads"]["done"] == 1
    finally:
        summary = run.end()
    assert not run.sink.errors and not summary.failures
    frames = {
        name: [
            {index % 30: result for index, result in each}
            for each in (run.sink.answers[name][: before[name]], run.sink.answers[name][after[name] :])
        ]
        for name in "abc"
    }
    both = {name: one.keys() & other.keys() for name, (one, other) in frames.items()}
    assert all(both.values())
    same = {name: [frames[name][0][each] == frames[name][1][each] for each in both[name]] for name in "abc"}
    assert all(same["a"]) and all(same["c"]) and not any(same["b"])


def test_drift_reverts(made: Path, box: Path, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_bundle(box).id
    for number in range(10):
        put_sample(tmp_path / "s", number, first)

    def answer(self: bundle_answers.BundleAnswers, image: object, queries: list[str]) -> dict[str, tuple[Class, ...]]:
        return {
            query: (Class("wrong" if query == "b" and self.bundle.id == first else "right", 0.9),) for query in queries
        }

    monkeypatch.setattr(bundle_answers.BundleAnswers, "answer", answer)
    flags = (
        "--originals",
        made / "original" / "bundle",
        "--json",
        tmp_path / "d.json",
        "--metrics",
        tmp_path / "d.prom",
    )
    # Without --revert, the bundle is left alone.
    assert gemel("drift", box, tmp_path / "s", *flags)[0] == REVERT_EXIT and open_bundle(box).id == first
    code, out, err = gemel("drift", box, tmp_path / "s", *flags, "--revert")
    assert code == REVERT_EXIT, err
    now = open_bundle(box)
    assert now.manifest.reverted == {"b"}
    assert f"{box}: b now with original weights; bundle {first[:12]} is now {now.id[:12]}" in out
    assert "Z, reverted" in out
    found = json.loads((tmp_path / "d.json").read_text())
    assert {query: each["reverted"] for query, each in found["queries"].items()} == {"a": False, "b": True, "c": False}
    assert (found["bundle"], found["bundle_now"], found["troubles"]) == (first, now.id, [])
    metrics = (tmp_path / "d.prom").read_text()
    assert 'gemel_drift_reverted{query="b"} 1.0' in metrics and 'gemel_drift_reverted{query="a"} 0.0' in metrics


def test_drift_that_cannot_revert(made: Path, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path(shutil.copytree(made / "merged" / "bundle", tmp_path / "plain"))
    before = open_bundle(plain).id
    for number in range(10):
        put_sample(tmp_path / "s", number, before)
    labels = iter([*["wrong", "right"] * 10])
    monkeypatch.setattr(
        bundle_answers.BundleAnswers,
        "answer",
        lambda _, image, queries: (lambda label: {each: (Class(label, 0.9),) for each in queries})(next(labels)),
    )
    command = ("drift", plain, tmp_path / "s", "--originals", made / "original" / "bundle")
    code, out, _ = gemel(*command, "--revert")
    assert code == 1 and open_bundle(plain).id == before
    assert out.count("is not reverted: ") == 2
    assert "query a: is not reverted: " in out and "has no original weights of query a" in out
    code, _, err = gemel(*command, "--port", "1")
    assert (code, err) == (2, "error: --key and --port: give --revert with them\n")


def test_drift_follows_reverts_once_and_has_the_run_reload(
    made: Path, box: Path, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_bundle(box).id
    for number in range(10):
        put_sample(tmp_path / "s", number, first)

    def answer(self: bundle_answers.BundleAnswers, image: object, queries: list[str]) -> dict[str, tuple[Class, ...]]:
        return {
            query: (Class("wrong" if query == "b" and self.bundle.id == first else "right", 0.9),) for query in queries
        }

    looks = 0
    real = follow.judge_new

    def judge_new(*given: object, stop: object, **more: object) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            # What the box answers after the revert: the other queries are judged on.
            for number in range(10, 13):
                put_sample(tmp_path / "s", number, open_bundle(box).id)
        real(*given, stop=stop, **more)  # type: ignore[arg-type]
        if looks == 3:
            stop.set()  # type: ignore[attr-defined]

    monkeypatch.setattr(bundle_answers.BundleAnswers, "answer", answer)
    monkeypatch.setattr(follow, "judge_new", judge_new)
    asked: list[tuple[int, Path]] = []

    def reload_command(port: int, bundle: Path, host: str, token_file: Path | None) -> None:
        asked.append((port, bundle))
        if len(asked) == 1:
            from gemel.errors import BackendError

            raise BackendError("127.0.0.1:9: no answer")

    monkeypatch.setattr("gemel.cli.drift.reload_command", reload_command)
    flags = ("--originals", made / "original" / "bundle", "--follow", "--every", "10ms", "--json", tmp_path / "d.json")
    code, out, err = gemel("drift", box, tmp_path / "s", *flags, "--revert", "--port", "9")
    assert code == REVERT_EXIT, err
    assert out.count("b now with original weights") == 1
    # A run that did not answer is asked again, and not once more when it has.
    assert out.count("reload: 127.0.0.1:9: no answer") == 1 and asked == [(9, box), (9, box)]
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["left_out"] == {}
    assert {query: each["samples"] for query, each in found["queries"].items()} == {"a": 13, "b": 10, "c": 0}
    assert found["queries"]["a"]["verdict"] == "holds" and found["queries"]["b"]["verdict"] == "revert"


def test_drift_leaves_a_bundle_alone_that_somebody_replaced(
    made: Path, box: Path, tmp_path: Path, gemel: Gemel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_bundle(box).id
    for number in range(10):
        put_sample(tmp_path / "s", number, first)

    def answer(self: bundle_answers.BundleAnswers, image: object, queries: list[str]) -> dict[str, tuple[Class, ...]]:
        if (box / "b.original.onnx").exists():
            shutil.rmtree(box)
            shutil.copytree(made / "merged" / "bundle", box)
        return {query: (Class("wrong" if self.bundle.id == first else "right", 0.9),) for query in queries}

    monkeypatch.setattr(bundle_answers.BundleAnswers, "answer", answer)
    code, out, _ = gemel("drift", box, tmp_path / "s", "--originals", made / "original" / "bundle", "--revert")
    now = open_bundle(box)
    assert code == 1 and f"is another bundle now, {now.id[:12]}; judge that one" in out and not now.manifest.reverted


def test_answers_differ_where_they_should(made: Path, box: Path, gemel: Gemel) -> None:
    before = answers(box, "abc")
    assert gemel("revert", box, "a", "b")[0] == 0
    after = answers(box, "abc")
    assert after == {**answers(made / "original" / "bundle", "ab"), "c": before["c"]} and after["a"] != before["a"]
