"""The public Python API: its names, what importing it costs, and the examples of docs/api.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gemel

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
# Types of what calls return: nobody has to name them to use them.
RETURNED = {"Analysis", "Bundle", "Plan", "Profile", "Simulation", "Summary", "Workload"}


def blocks() -> list[str]:
    """Python examples of the page, in order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_every_public_name_exists_and_is_documented() -> None:
    assert sorted(gemel.__all__) == gemel.__all__
    for name in gemel.__all__:
        found = getattr(gemel, name)
        assert name == "__version__" or found.__doc__, name
        assert name in PAGE.read_text() or name in RETURNED
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gemel.nothing


def test_importing_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, gemel; gemel.__version__; dir(gemel)\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'cv2', 'av', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_box_without_pytorch_is_told_what_is_missing() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import gemel; gemel.BundleSession, gemel.run_bundle, gemel.simulate\n"
        "try: gemel.merge_workload\n"
        "except gemel.GemelError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "gemel.merge_workload" in done.stdout
    assert "merge" in done.stdout.split("gemel.merge_workload")[1]


@pytest.mark.usefixtures("one_thread")
def test_the_examples_of_the_page_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    shutil.copy(ROOT / "examples" / "profiles" / "paper.yaml", "profile.yaml")
    names: dict[str, object] = {}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "every query was answered" in printed
    answers = names["session"].answer  # type: ignore[attr-defined]
    assert answers
    assert "colour 1 " in printed or "direction 1 " in printed
    # The merge kept its targets, and the bundle answers as the labels say.
    assert all(query.relative >= query.target for query in names["report"].queries.values())  # type: ignore[attr-defined]
    assert "Class(label='red'" in printed


def test_a_session_refuses_what_is_no_image_and_no_query(bundle: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    with gemel.BundleSession(gemel.open_bundle(bundle), memory="min", threads=1) as session:
        assert session.answer_feed("yard", image).keys() == {"a", "b"}
        for wrong in (image.astype(np.float32), image[:, :, 0], image[:, :, :2], [[1]]):
            with pytest.raises(gemel.GemelError, match="is not an image"):
                session.answer("a", wrong)  # type: ignore[arg-type]
        with pytest.raises(gemel.GemelError, match="query 'x' is not in the bundle; its queries are a, b, c"):
            session.answer("x", image)
        with pytest.raises(gemel.GemelError, match="feed 'x' has no query; feeds are yard, gate"):
            session.answer_feed("x", image)


def test_equal_images_are_answered_alike_by_a_session_and_a_run(bundle: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    with gemel.BundleSession(gemel.open_bundle(bundle), threads=1) as session:
        assert (
            session.answer("a", image) == session.answer("a", image.copy()) == session.answer_feed("yard", image)["a"]
        )
        assert session.answer("a", image) != session.answer("a", 255 - image)
