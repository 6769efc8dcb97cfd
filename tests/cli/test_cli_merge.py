"""Command ``gemel merge``."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import call, query, save, without
from tiny_models import tiny

from gemel.bundles.merge_report import read_report
from gemel.cli.merge import parse_budget
from gemel.errors import InputError, install_hint
from gemel.merging.training.start import donate
from gemel.workload import Workload, load_workload

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(workload_in: Callable[..., Workload]) -> Path:
    """Return a workload of two untrained models on unlabelled frames, where each model is its own teacher."""
    root = workload_in(query("a"), query("b"), feeds={"yard": {"source": "frames"}}).root
    (root / "frames").mkdir()
    rng = np.random.default_rng(0)
    frames = [(rng.integers(0, 200, 3) + rng.integers(0, 55, (32, 32, 3))).astype(np.uint8) for _ in range(40)]
    for index, frame in enumerate(frames):
        cv2.imwrite(str(root / "frames" / f"{index:02}.png"), frame)
    images = torch.from_numpy(np.stack(frames)[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    for name, seed in (("a", 0), ("b", 1)):
        model = tiny(seed)
        # A model that was never trained gives one class; without the mean of its scores it gives several.
        with torch.no_grad():
            model.head.bias.sub_(model.eval()(images).mean(0))
        save(model, root / f"{name}.safetensors")
    return root / "workload.yaml"


@pytest.fixture
def merge(gemel: Call) -> Call:
    return partial(gemel, "merge")


SHORT = ("--steps", "4", "--epochs", "1", "--batch", "8", "--device", "cpu")


def test_a_line_for_each_model_trial_and_query(path: Path, merge: Call, tmp_path: Path) -> None:
    merged = tmp_path / "merged[1]"
    code, out, err = merge(path, "-o", merged, *SHORT)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    # Each query has a second line: its frames are too few for its target.
    report = read_report(merged / "merge.json")
    ending = ["query"] * 4 + ["weights", "saving", "Next:"]
    assert [first for first, _ in lines] == [
        *["model"] * 2,
        "layers",
        "search",
        *["trial"] * len(report.trials),
        *ending,
    ]
    rest = [text for _, text in lines]
    assert re.fullmatch(r"\d+\.\d s  7 looks and \d trainings? to come if each training reaches its targets", rest[3])
    assert re.fullmatch(
        r"\d+\.\d s  a, b: \d+ layers: one kernel for all models leaves \d+% of their outputs unexplained"
        r" \(median; \d+% to \d+%\), \d+ of them more than half",
        rest[2],
    )
    assert re.fullmatch(r"\d+\.\d s  a: 4 layers, \d+ images; a 100\.0%", rest[0])
    assert re.fullmatch(
        r"\d+\.\d s  .+: (accepted|not accepted|measured) \(.+\); worst query [ab] keeps \d+\.\d%; \d+\.\d% saved; \d+"
        r" images in \d+ s; left: (nothing|.*(look|training)s?.*)",
        rest[4],
    )
    assert rest[-7] == "a: 100.0% of 100.0%, 100.0% of the original (target 95%)"
    assert re.fullmatch(
        r"a: the images that choose are too few: n=7: .+ takes 60 images .+: give more frames", rest[-6]
    )
    assert re.match(r"\d+\.\d\d MB, merged \d+\.\d\d MB: \d+\.\d% saved", rest[-3])
    assert re.match(r"of the bytes of .+: \d+\.\d% by sharing, 0\.0% by compression; sharing alone", rest[-2])
    assert rest[-1] == f"gemel-compile {merged}/workload.yaml -o bundle/"
    assert "\x1b" not in out
    load_workload(merged / "workload.yaml")


def test_compression_is_the_users_choice_and_each_step_is_published(trained: Path, merge: Call, tmp_path: Path) -> None:
    flags = ("--compress", "--no-differences", "--no-retrain", "--publish", tmp_path / "out")
    code, out, _ = merge(trained / "workload.yaml", "-o", tmp_path / "merged", *SHORT, *flags)
    assert code == 0
    report = read_report(tmp_path / "merged" / "merge.json")
    assert report.forms is not None
    assert {layer.kind for layer in report.forms.layers} == {"coded"}
    assert "0.0% by sharing" in out
    assert "try --compress" not in out
    lines = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.split()[0] == "publish"]
    assert f"{tmp_path}/out/bundle: the bundle that boxes begin with" in lines[0]
    assert ".delta: " in lines[-1]
    assert len(list((tmp_path / "out").glob("*.delta"))) == len(lines) - 1
    code, out, _ = merge(
        trained / "workload.yaml", "-o", tmp_path / "plain", *SHORT, "--no-differences", "--no-retrain"
    )
    assert code == 0
    assert "compression alone saves more than this merge: try --compress" in out


def test_options_reach_the_search(path: Path, merge: Call, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    arguments = ("--strategy", "together", "--seed", "3", "--no-inside", "--start", "donor", "--rate", "0.01")
    learning = ("--supervision", "teacher", "--definition", "strict")
    assert merge(path, "-o", merged, *SHORT, *arguments, *learning)[0] == 0
    report = read_report(merged / "merge.json")
    assert (report.strategy, report.seed) == ("together", 3)
    header = json.loads((merged / "search" / "journal.jsonl").read_text().splitlines()[0])
    settings = {
        "inside": False,
        "steps": 4,
        "epochs": 1,
        "batch": 8,
        "rate": 0.01,
        "start": "donor",
        "supervision": "teacher",
    }
    assert settings.items() <= header.items()
    assert header["definition"] == "strict"


def test_labels_are_asked_for_where_there_are_none(path: Path, merge: Call, tmp_path: Path) -> None:
    code, _, err = merge(path, "-o", tmp_path / "merged", *SHORT, "--supervision", "both")
    assert code == 2
    assert "--supervision: both: no model has labels to learn from; give data.train with labels" in err


def test_no_time_is_said_and_leaves_what_there_was(path: Path, merge: Call, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    code, out, _ = merge(path, "-o", merged, *SHORT, "--budget", "0.001s")
    assert code == 0
    *_, notice, last = out.splitlines()
    assert re.fullmatch(
        r"time is up before 2 of the models were loaded, after \d+ s; --resume goes on with a larger --budget", notice
    )
    assert sum("stays as it is: the time was up before it was loaded" in line for line in out.splitlines()) == 2
    assert last.startswith("Next: gemel-compile ")
    report = read_report(merged / "merge.json")
    assert (report.finished, report.trials) == (False, ())
    assert [each.model.weights for each in load_workload(merged / "workload.yaml").queries] == [
        "../a.safetensors",
        "../b.safetensors",
    ]
    code, out, _ = merge(path, "-o", merged, *SHORT, "--resume", "--budget", "1h")
    assert code == 0
    assert read_report(merged / "merge.json").finished


def test_a_budget_shorter_than_one_look_is_said(
    path: Path, merge: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged, late = tmp_path / "merged", False

    def slow(*arguments: Any, **options: Any) -> frozenset[str]:
        nonlocal late
        late = True
        return donate(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("gemel.merging.training.trial.donate", slow)
        for module in ("merge", "search.search", "training.loading", "training.trial"):
            patched.setattr(f"gemel.merging.{module}.monotonic", lambda: 1e9 if late else 0.0)
        code, out, _ = merge(path, "-o", merged, *SHORT, "--budget", "1h")
    assert code == 0
    *_, notice, last = out.splitlines()
    assert notice.startswith("time is up before the first look at starting weights was over, after ")
    assert notice.endswith("; --resume goes on with a larger --budget")
    assert last.startswith("Next: gemel-compile ")
    assert read_report(merged / "merge.json").trials == ()
    assert len(load_workload(merged / "workload.yaml").queries) == 2
    assert merge(path, "-o", merged, *SHORT, "--resume")[0] == 0
    assert read_report(merged / "merge.json").finished


def interrupt(number: int) -> Callable[..., frozenset[str]]:
    """Return a replacement of ``donate`` that raises a signal in the first trial."""
    once = iter([number])

    def interrupted(*arguments: Any, **options: Any) -> frozenset[str]:
        for each in once:  # once: a second signal would end the tests
            signal.raise_signal(each)
        return donate(*arguments, **options)

    return interrupted


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_a_workload_that_can_be_used(
    number: int, expected: int, path: Path, merge: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = tmp_path / "merged"
    with monkeypatch.context() as patched:
        patched.setattr("gemel.merging.training.trial.donate", interrupt(number))
        # No start is good enough, so that there is training to interrupt.
        patched.setattr("gemel.merging.training.trial._met", lambda *_: frozenset())
        before = signal.getsignal(signal.SIGINT)
        code, out, err = merge(path, "-o", merged, *SHORT)
        assert signal.getsignal(signal.SIGINT) is before
    assert (code, err) == (expected, "")
    assert out.splitlines()[-1] == f"stopped; {merged} has what was found so far. Next: the same command with --resume"
    assert not read_report(merged / "merge.json").finished
    assert len(load_workload(merged / "workload.yaml").queries) == 2
    code, out, err = merge(path, "-o", merged, *SHORT)
    assert code == 2
    assert err == f"error: {merged}: is there already; --resume goes on with it; name another folder, or delete it\n"
    code, out, _ = merge(path, "-o", merged, *SHORT, "--resume")
    assert code == 0
    assert read_report(merged / "merge.json").finished


def test_ctrl_c_while_models_are_loaded(
    path: Path, merge: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cv2.imread

    def imread(*arguments: Any) -> Any:
        monkeypatch.setattr(cv2, "imread", real)
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(cv2, "imread", imread)
    merged = tmp_path / "merged"
    code, out, _ = merge(path, "-o", merged, *SHORT)
    assert code == 130
    assert out.splitlines()[-1] == f"stopped; {merged} has nothing yet. Next: the same command with --resume"
    # Another try works without --resume, because nothing was written.
    assert merge(path, "-o", merged, *SHORT)[0] == 0


def test_a_mistake_in_the_workload_leaves_nothing_in_the_way(path: Path, merge: Call, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    right = path.read_text()
    document = yaml.safe_load(right)
    document["queries"][1]["data"] = {"train": "nowhere"}
    path.write_text(json.dumps(document))
    code, _, err = merge(path, "-o", merged, *SHORT)
    assert code == 2
    assert "query b: data.train: " in err
    path.write_text(right)
    assert merge(path, "-o", merged, *SHORT)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "--budget: 'soon' is not allowed: a time such as 90s, 20m or 2h is expected"),
        (["--definition", "kind"], "--definition: 'kind' is not allowed: shape, strict"),
        (["--start", "best"], "--start: 'best' is not allowed: donor, first, average"),
        (["--supervision", "none"], "--supervision: 'none' is not allowed: teacher, labels, both"),
        (["--strategy", "best"], "--strategy: 'best' is not allowed: one of together, heaviest"),
        (["--device", "tpu"], "--device: 'tpu' is not allowed: auto, cpu or cuda"),
        (["--rate", "0"], "--rate: 0.0 is not allowed: a number above 0 is expected"),
        (["--rate", "nan"], "--rate: nan is not allowed"),
    ],
)
def test_mistakes_are_one_line(path: Path, merge: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, out, err = merge(path, "-o", tmp_path / "merged", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("option", ["--steps", "--epochs", "--batch"])
def test_numbers_that_are_too_small(option: str, path: Path, merge: Call, tmp_path: Path) -> None:
    code, _, err = merge(path, "-o", tmp_path / "merged", option, "0")
    assert code == 2
    assert option in err


def test_places_that_cannot_be_written_or_read(path: Path, merge: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path / "file", "is there already; name another folder, or delete it"),
        (tmp_path / "file" / "merged", "cannot be written: Not a directory"),
        (path.parent, "is there already; name another folder, or delete it"),
    ):
        code, _, err = merge(path, "-o", output, *SHORT)
        assert (code, err) == (2, f"error: {output}: {message}\n")
    code, _, err = merge(tmp_path / "nowhere.yaml", "-o", tmp_path / "merged")
    assert (code, err) == (2, f"error: {tmp_path}/nowhere.yaml: cannot be read: No such file or directory\n")
    code, _, err = merge(path, "-o", path.parent, "--resume")
    assert code == 2
    assert "holds no merge to resume" in err


def test_another_search_is_not_resumed(path: Path, merge: Call, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert merge(path, "-o", merged, *SHORT)[0] == 0
    code, _, err = merge(path, "-o", merged, *SHORT, "--resume", "--seed", "1")
    assert code == 2
    assert "was begun with seed 0, now it is 1; resume with what it was begun with, or name another folder" in err
    code, _, err = merge(path, "-o", merged, *SHORT, "--resume", "--rate", "0.5")
    assert "was begun with rate None, now it is 0.5; " in err
    path.write_text(path.read_text().replace("b.safetensors", "a.safetensors"))
    code, _, err = merge(path, "-o", merged, *SHORT, "--resume")
    assert code == 2
    assert "was begun with other queries or feeds; " in err


def test_without_ray(path: Path, merge: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = merge(path, "-o", tmp_path / "merged", *SHORT, "--ray", "local")
    assert code == 2
    assert err.endswith(f"gemel merge --ray needs packages that are not installed: {install_hint('ray')}\n")


def test_packages_that_are_not_installed(path: Path, tmp_path: Path) -> None:
    done = call("gemel", "merge", path, "-o", tmp_path / "merged", **without("torch", path=tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: gemel merge needs packages that are not installed: {install_hint('merge')}\n"
    assert not (tmp_path / "merged").exists()


def test_help_has_an_example(merge: Call) -> None:
    code, out, _ = merge("--help")
    assert code == 0
    assert "gemel merge examples/" in out
    assert {"--budget", "--resume", "--strategy", "--device", "--ray"} <= set(re.findall(r"--[\w-]+", out))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("20min", 1200), (" 1.5 h ", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "0m", "-5m", "1h30m", "2d", "m"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        parse_budget(text)


def test_only_published_deltas_are_signed(path: Path, merge: Call, tmp_path: Path) -> None:
    code, _, err = merge(path, "-o", tmp_path / "merged", "--sign", "key.pem")
    assert (code, "--sign: only deltas are signed; give --publish DIR" in err) == (2, True)
