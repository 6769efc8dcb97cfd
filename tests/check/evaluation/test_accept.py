"""Agreement of bf16 answers with float32 answers, and ``gemel eval --accept``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import write_video

from gemel.bundles.reader import Bundle, open_bundle
from gemel.check.evaluation import accept as module
from gemel.check.evaluation.accept import measure_bf16
from gemel.check.evaluation.answers import Answer, Recorder
from gemel.check.evaluation.reference import AnswerCount, OfflineSettings
from gemel.errors import BackendError, FeedError
from gemel.runtime import device_cache as cache
from gemel.runtime.decode.results import Class
from gemel.runtime.ov.accepted import Acceptance, QueryAgreement, read_acceptance

Gemel = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Return a bundle on a CPU that seems to compute in bf16; the user's cache folder is below ``tmp_path``."""
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(module, "computes_in_bf16", lambda: True)
    return open_bundle(bundle)


def answers(**labels: str) -> Recorder:
    """Return answers, given as query -> a letter per frame; a blank is a frame without an answer."""
    recorder = Recorder()
    for query, letters in labels.items():
        recorder.answers[query] = [
            Answer(frame, frame / 10, 0.0, 0.0, (Class(letter, 1.0),))
            for frame, letter in enumerate(letters)
            if letter != " "
        ]
    return recorder


def test_agreement(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backends: list[str] = []
    given = {
        "ort-cpu": answers(a="x" * 40, b="xy" * 20, c="x" * 19),
        "openvino-fast": answers(a="x" * 38 + " z", b="xy" * 20 + "x", c="x" * 19),
    }

    def answer_all(*_: object, backend: str, beside: Sequence[AnswerCount], **__: object) -> Recorder:
        backends.append(backend)
        return given[backend]

    monkeypatch.setattr(module, "answer_all", answer_all)
    found = measure_bf16(made, OfflineSettings(frames=40))
    assert backends == ["ort-cpu", "openvino-fast"]
    assert found == Acceptance(
        bundle=made.id,
        queries={
            # A missing answer is wrong, and so is another class.
            "a": QueryAgreement(agreement=38 / 40, frames=40),
            "b": QueryAgreement(agreement=1.0, frames=40),
            # Too few frames to judge by.
            "c": QueryAgreement(agreement=None, frames=19),
        },
    )


def test_a_cpu_without_bf16(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "computes_in_bf16", lambda: False)
    with pytest.raises(BackendError, match="does not compute in bf16 on this CPU, so there is nothing to accept"):
        measure_bf16(made, OfflineSettings())


def test_a_camera(made: Bundle) -> None:
    with pytest.raises(FeedError, match="give a recording with --feed yard=FILE"):
        measure_bf16(made, OfflineSettings(sources={"yard": "rtsp://host/1"}))


def test_a_camera_beside_a_recording(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given = answers(a="x" * 40, b="x" * 40)
    monkeypatch.setattr(module, "answer_all", lambda *_, **__: given)
    feeds = {**made.manifest.feeds, "gate": made.manifest.feeds["gate"].model_copy(update={"source": "rtsp://host/1"})}
    mixed = Bundle(made.path, made.manifest.model_copy(update={"feeds": feeds}), made.id)
    found = measure_bf16(mixed, OfflineSettings())
    assert {name: (each.agreement, each.frames) for name, each in found.queries.items()} == {
        "a": (1.0, 40),
        "b": (1.0, 40),
        "c": (None, 0),
    }
    # Query c of the camera has model a, too.
    assert found.models(mixed).keys() == {"b"}


def test_flags(made: Bundle, gemel: Gemel) -> None:
    for flags, expected in (
        (("--accept", "int8"), "--accept: 'int8' is not allowed: bf16 is expected"),
        (("--accept", "bf16", "--backend", "ort-cpu"), "--backend: cannot be given with --accept"),
        (("--accept", "bf16", "--seconds", "3"), "--seconds: cannot be given with --accept, which runs nothing live"),
    ):
        code, _, err = gemel("eval", made.path, *flags)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert expected in err


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino")
def test_the_command(made: Bundle, gemel: Gemel, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", 24)
    code, out, err = gemel(
        "eval", made.path, "--accept", "bf16", "--feed", f"yard={video}", "--frames", "22", "--threads", "1"
    )
    assert (code, err) == (0, "")
    found = read_acceptance(made)
    assert found is not None
    assert {name: each.frames for name, each in found.queries.items()} == {"a": 22, "b": 22, "c": 6}
    # Query c has too few frames, so its model a is refused for query a, too.
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1] in (["a"], ["b"], ["c"])}
    assert rows["c"] == ["c", "a", "nothing", "6", "0.95", "refused"]
    assert rows["a"][-1] == "refused"
    assert rows["b"][1:] == ["b", f"{found.queries['b'].agreement:.4f}", "22", "0.95", rows["b"][-1]]
    assert out.splitlines()[-1] == f"Next: gemel-run {made.path} --backend auto-cpu"
    code, out, err = gemel("inspect", made.path)
    assert (code, err) == (0, "")
    assert "bf16 of a in auto-cpu: refused; a agreement" in out
    assert "c nothing to judge by on 6 frames, target 0.95" in out
