"""Deltas between bundles: the receiver gets the very same bundle, in few bytes, and nothing else gets in."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from delta_bundles import content_of, delta_between, noise, opened, retrained, two_bundles, with_header
from helpers import swap_for_a_link, swap_for_a_pipe
from numpy.typing import NDArray

from gemel.bundles import build_bundle, zstd_frames
from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.delta_format import PRELUDE_BYTES, read_header
from gemel.bundles.known_variables import known_variables, remember_variables
from gemel.bundles.reader import MANIFEST, open_bundle, verify
from gemel.bundles.replace_bundle import alone_with
from gemel.bundles.rounded_bundle import write_rounded
from gemel.bundles.write_delta import write_delta
from gemel.bundles.zstd_frames import compress
from gemel.errors import BundleError, InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return two compiled bundles and the delta between them, which no test may change."""
    folder = tmp_path_factory.mktemp("delta")
    old, new = two_bundles(folder)
    return old, new, delta_between(old, new, folder / "step.delta")


@pytest.fixture
def box(made: tuple[Path, Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of the old bundle and of the delta, in a folder of their own."""
    shutil.copytree(made[0], tmp_path / "box" / "bundle")
    shutil.copy(made[2], tmp_path / "step.delta")
    return tmp_path / "step.delta", tmp_path / "box" / "bundle"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_receiver_gets_the_same_bundle(made: tuple[Path, Path, Path], box: tuple[Path, Path]) -> None:
    delta, bundle = box
    (bundle / "device-cache").mkdir()
    done = apply_delta(delta, bundle)
    assert content_of(bundle) == content_of(made[1])
    assert done.bundle.id == open_bundle(made[1]).id
    assert names(bundle.parent) == ["bundle"]
    tensors, kept = (open_bundle(folder).manifest.tensors for folder in (made[1], made[0]))
    assert done.kept_bytes == sum(spec.length for name, spec in tensors.items() if name in kept) > 0
    assert done.new_bytes == sum(spec.length for name, spec in tensors.items() if name not in kept) > 0


def test_beside_the_old_one(made: tuple[Path, Path, Path], box: tuple[Path, Path], tmp_path: Path) -> None:
    apply_delta(*box, output=tmp_path / "made")
    assert content_of(tmp_path / "made") == content_of(made[1])
    assert content_of(box[1]) == content_of(made[0])


def test_what_the_receiver_has_is_not_sent(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    written = write_delta(*opened(made[0], made[1]), tmp_path)
    old, new = opened(made[0], made[1])
    assert written.path == tmp_path / f"{old.id[:32]}.delta"
    lacking = {name: spec for name, spec in new.manifest.tensors.items() if name not in old.manifest.tensors}
    assert (written.tensors, written.tensor_bytes) == (len(lacking), sum(spec.length for spec in lacking.values()))
    everything = len(compress(b"".join(new.tensor(name).tobytes() for name in lacking), 19))
    assert written.part_bytes["weights.bin"] <= 1.05 * everything + 100
    have = list(old.manifest.files.values())
    unchanged = {name for name, spec in new.manifest.files.items() if spec in have}
    # The stem of c is that of a.
    assert {"a.onnx", "c.stem.onnx"} <= unchanged
    assert written.part_bytes.keys() == {MANIFEST, *new.manifest.files} - unchanged
    # Much of the manifest stays.
    assert written.part_bytes[MANIFEST] < (made[1] / MANIFEST).stat().st_size / 4
    assert written.bytes == written.path.stat().st_size


def test_equal_deltas_of_equal_bundles(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    assert delta_between(made[0], made[1], tmp_path / "again").read_bytes() == made[2].read_bytes()


def test_weights_that_changed_a_little(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    new = retrained(made[1], tmp_path / "new", noise(1e-4))
    written = write_delta(*opened(made[1], new), tmp_path / "step")
    assert written.encodings.get("bits")
    assert written.part_bytes["weights.bin"] < 0.6 * written.tensor_bytes
    shutil.copytree(made[1], tmp_path / "box")
    apply_delta(tmp_path / "step", tmp_path / "box")
    assert content_of(tmp_path / "box") == content_of(new)


def test_changes_of_8_bits(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    new = retrained(made[1], tmp_path / "new", noise(1e-2))
    rounded = write_rounded(*opened(made[1], new), tmp_path / "rounded")
    assert rounded.bases
    assert content_of(tmp_path / "rounded").keys() == content_of(new).keys()
    list(verify(rounded.bundle))
    for name, base in rounded.bases.items():
        before = open_bundle(made[1])
        change = rounded.bundle.tensor(name) - before.tensor(base)
        step = np.abs(change.reshape(len(change), -1)).max(1) / 127
        exact = next(
            open_bundle(new).tensor(other)
            for other, spec in open_bundle(new).manifest.tensors.items()
            if spec.offset == rounded.bundle.manifest.tensors[name].offset
        )
        error = np.abs(rounded.bundle.tensor(name) - exact).reshape(len(change), -1).max(1)
        assert (error <= 0.51 * step + 1e-7).all()
    written = write_delta(open_bundle(made[1]), rounded.bundle, tmp_path / "step", rounded=rounded)
    assert written.encodings["steps"] >= 0.8 * written.tensor_bytes
    assert written.part_bytes["weights.bin"] <= 0.37 * written.tensor_bytes
    shutil.copytree(made[1], tmp_path / "box")
    apply_delta(tmp_path / "step", tmp_path / "box")
    assert content_of(tmp_path / "box") == content_of(tmp_path / "rounded")


def test_weights_that_are_rounded_already_stay(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    new = retrained(made[1], tmp_path / "new", noise(1e-2))
    once = write_rounded(*opened(made[1], new), tmp_path / "once")
    twice = write_rounded(open_bundle(made[1]), once.bundle, tmp_path / "twice")
    assert twice.bases == once.bases
    assert (tmp_path / "twice" / "weights.bin").read_bytes() == (tmp_path / "once" / "weights.bin").read_bytes()


def test_weights_that_are_far_from_the_old_ones_are_not_rounded(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for number, factor in enumerate((1e-3, np.inf)):

        def change(array: NDArray[Any], by: float = factor) -> NDArray[Any]:
            made: NDArray[Any] = (array * np.float32(by)).astype(array.dtype)
            return made

        new = retrained(made[1], tmp_path / f"new{number}", change)
        rounded = write_rounded(*opened(made[1], new), tmp_path / f"rounded{number}")
        assert rounded.bases == {}
        assert content_of(tmp_path / f"rounded{number}")["weights.bin"] == content_of(new)["weights.bin"]


def test_kernels_that_are_computed(form_folder: Path, bundle: Path, tmp_path: Path) -> None:
    """Tensors that kernels are computed from are sent like others, but never rounded: kernels have ids, too."""
    first = form_folder / "bundle"
    second = retrained(first, tmp_path / "second", noise(1e-3))
    rounded = write_rounded(*opened(first, second), tmp_path / "rounded")
    sources = {tensor for form in rounded.bundle.manifest.forms.values() for tensor in form.stored}
    assert sources and not sources & rounded.bases.keys()
    for name in rounded.bundle.manifest.forms:
        rounded.bundle.tensor(name)
    for number, (old, new) in enumerate(((bundle, first), (first, second), (first, tmp_path / "rounded"))):
        step = write_delta(*opened(old, new), tmp_path / f"{number}", rounded=rounded if number == 2 else None)
        made = apply_delta(step.path, old, tmp_path / f"made{number}").bundle
        assert content_of(made.path) == content_of(new)


def refused(delta: Path, bundle: Path, message: str, **options: Any) -> None:
    """Check that a delta is refused with one line, and that nothing is left behind or changed."""
    before, around = content_of(bundle), names(bundle.parent)
    with pytest.raises(BundleError, match=message) as caught:
        apply_delta(delta, bundle, **options)
    assert "\n" not in str(caught.value)
    assert content_of(bundle) == before
    assert names(bundle.parent) == around


def test_applied_twice(box: tuple[Path, Path]) -> None:
    apply_delta(*box)
    refused(*box, r"step\.delta: .*bundle is already the bundle \w{12} that this delta makes")


def test_out_of_order_and_for_another_bundle(made: tuple[Path, Path, Path], box: tuple[Path, Path]) -> None:
    later = retrained(made[1], box[0].parent / "later", noise(0.1))
    step = delta_between(made[1], later, box[0].parent / "later.delta")
    refused(step, box[1], r"later\.delta: starts from bundle \w{12}, but .*bundle is \w{12}; apply the deltas between")
    apply_delta(*box)
    apply_delta(step, box[1])
    assert content_of(box[1]) == content_of(later)


def test_a_delta_of_a_bundle_and_itself(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are the same bundle; there is nothing to send"):
        delta_between(made[0], made[0], tmp_path / "none")


def test_cut_off_at_any_byte(box: tuple[Path, Path]) -> None:
    delta, bundle = box
    data = delta.read_bytes()
    with delta.open("rb") as file:
        begin = len(read_header(file, "x").data)
    for size in sorted({1, 5, PRELUDE_BYTES - 1, PRELUDE_BYTES, begin - 1, begin, *range(begin + 1, len(data), 997)}):
        delta.write_bytes(data[:size])
        refused(delta, bundle, r"step\.delta: is cut off: has")
    delta.write_bytes(b"")
    refused(delta, bundle, "is not a delta")
    delta.write_bytes(data + b"x")
    refused(delta, bundle, "goes on behind its end")


def test_a_changed_bit_anywhere(box: tuple[Path, Path]) -> None:
    delta, bundle = box
    data = delta.read_bytes()
    for at in sorted({*range(PRELUDE_BYTES), *range(PRELUDE_BYTES, len(data), 501), len(data) - 1}):
        delta.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        refused(delta, bundle, r"step\.delta: (is damaged|is not a delta|is cut off)")


def forge(delta: Path, change: Any, frames: Any = lambda data: data) -> None:
    with_header(delta, change, frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version="2.0"), r"schema_version '2\.0' cannot be read by this gemel; upgrade"),
        (lambda d: d.pop("makes"), "makes: Field required"),
        (lambda d: d["parts"][1].update(name="../a.onnx"), "is not a plain file name"),
        (lambda d: d["parts"][1].update(name="/etc/passwd"), "is not a plain file name"),
        (lambda d: d["parts"][1].update(like="../../secret"), "is not a plain file name"),
        (lambda d: d["parts"][1].update(like="strange"), "strange is not listed"),
        (lambda d: d["parts"][1].update(name="strange.onnx"), r"strange\.onnx is not expected among its parts"),
        (lambda d: d["parts"].reverse(), r"its parts are not manifest\.json and other files"),
        (lambda d: d["parts"].append(d["parts"][1]), r"its parts are not manifest\.json and other files, each once"),
        (lambda d: d["parts"][0]["frames"][0].update(bytes=10), "a frame of .* bytes for 10 bytes of data"),
        (lambda d: d["parts"][0]["frames"][0].update(bytes=5 << 20), "less than or equal to 4194304"),
        (lambda d: d["parts"][0]["frames"][0].update(bytes=4 << 20), "is damaged in manifest.json"),
        (lambda d: d["parts"][-1]["frames"][0].update(bytes=4 << 20), r"is damaged in weights\.bin"),
        (lambda d: d.update(makes="0" * 64), r"its manifest\.json is not that of the bundle 0000"),
        (lambda d: d.update(steps={next(iter(d["bits"])): next(iter(d["bits"].values()))}), "has two encodings"),
        (lambda d: d.update(bits=dict.fromkeys(d["bits"], "0" * 32)), "is a change of 0000.*, which does not fit"),
        (lambda d: d.update(bits={}), r"weights\.bin would not be as its manifest says"),
    ],
)
def test_a_forged_header(change: Any, message: str, made: tuple[Path, Path, Path], box: tuple[Path, Path]) -> None:
    new = retrained(made[0], box[0].parent / "new", noise(1e-4))
    with (new / "a.onnx").open("ab") as file:
        file.write(b"\x42\x01g")  # an unknown field of ModelProto
    text = (new / MANIFEST).read_text()
    old_hash, new_hash = content_of(made[0])["a.onnx"], content_of(new)["a.onnx"]
    text = text.replace(old_hash, new_hash)
    size = (made[0] / "a.onnx").stat().st_size
    (new / MANIFEST).write_text(text.replace(f'"bytes": {size}', f'"bytes": {size + 3}', 1))
    delta_between(made[0], new, box[0])
    forge(box[0], change)
    refused(*box, message)


def test_a_bomb_is_not_unpacked(box: tuple[Path, Path]) -> None:
    """A frame that would grow to 128 MiB gives no more than the bytes that its entry names."""
    packer = zstd_frames.zstd.ZstdCompressor(1)  # type: ignore[attr-defined]
    bomb = b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(8)), packer.flush()])

    def change(document: dict[str, Any]) -> None:
        frame = document["parts"][0]["frames"][0]
        document["parts"] = document["parts"][:1]
        document["parts"][0] = {"name": MANIFEST, "frames": [frame]}
        frame.update(bytes=4 << 20, packed=len(bomb), sha256=hashlib.sha256(bomb).hexdigest())

    forge(box[0], change, lambda _: bomb)
    refused(*box, r"is damaged in manifest\.json: its content is not 4194304 bytes")


def test_strange_files(box: tuple[Path, Path]) -> None:
    delta, bundle = box
    refused(delta.with_name("none"), bundle, "none: is missing")
    refused(delta.parent, bundle, "is not a file")
    text = delta.with_name("text")
    text.write_text("hello")
    refused(text, bundle, "text: is not a delta; gemel diff writes one")
    swap_for_a_pipe(text)
    refused(text, bundle, "text: is not a file")
    with pytest.raises(BundleError, match="nowhere: not a bundle: No such file"):
        apply_delta(delta, bundle.parent / "nowhere")
    with pytest.raises(BundleError, match=r"not a bundle \(no manifest\.json\)"):
        apply_delta(delta, delta.parent)
    swap_for_a_link(bundle)
    with pytest.raises(BundleError, match="is a link or the root; a bundle is a folder of its own"):
        apply_delta(delta, bundle)


def test_a_damaged_old_bundle(box: tuple[Path, Path]) -> None:
    blob = box[1] / "weights.bin"
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.write_bytes(data)
    refused(*box, r"weights\.bin would not be as its manifest says; is .*bundle damaged")


def test_a_folder_with_files_of_somebody_else(box: tuple[Path, Path]) -> None:
    (box[1] / "notes.txt").write_text("mine")
    refused(*box, r"holds notes\.txt, which is not of a bundle; it is not overwritten")


def test_a_full_disk_at_each_write(
    made: tuple[Path, Path, Path], box: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = 0

    def put(out: BinaryIO, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        out.write(data)

    monkeypatch.setattr(build_bundle, "_put", put)
    fails_at = 1
    while True:
        writes = 0
        if fails_at > 500:
            raise AssertionError("it never succeeds")
        try:
            apply_delta(*box)
            break
        except BundleError as error:
            assert str(error).endswith("bundle: cannot be written: No space left on device")
            assert content_of(box[1]) == content_of(made[0])
            assert names(box[1].parent) == ["bundle"]
        fails_at += 1
    assert fails_at > 5
    assert content_of(box[1]) == content_of(made[1])


KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from gemel import durable
from gemel.bundles import build_bundle, zstd_frames
from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.reader import open_bundle

delta, bundle, old, new = (Path(each) for each in sys.argv[1:5])
ids = {open_bundle(old).id: "old", open_bundle(new).id: "new"}


def dying(function, halves=False):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if halves:
            left -= 1
            if left == 0:
                out, data = arguments
                function(out, data[: len(data) // 2])
                out.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call


kills, found = 0, []
while True:
    kills += 1
    child = os.fork()
    if child == 0:
        left = kills
        build_bundle._put = dying(build_bundle._put, halves=True)
        durable._sync = dying(lambda path: None)
        durable._exchange = dying(durable._exchange)
        os.unlink = dying(os.unlink)
        shutil.rmtree = dying(shutil.rmtree)
        apply_delta(delta, bundle)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    opened = open_bundle(bundle)
    found.append(ids[opened.id])
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
    if found[-1] == "new":
        # The next one removes what is left.
        shutil.rmtree(bundle)
        shutil.copytree(old, bundle)
print(kills, found.count("old"), found.count("new"), sorted(path.name for path in bundle.parent.iterdir()))
"""


def test_killed_at_each_write(made: tuple[Path, Path, Path], box: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", KILLS, *map(str, (*box, made[0], made[1]))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills, old, new, left = done.stdout.split(maxsplit=3)
    assert (int(kills), int(old) + int(new)) >= (10, 10)
    assert int(new) >= 2
    assert left.strip() == "['bundle']"
    assert content_of(box[1]) == content_of(made[1])


def test_killed_where_folders_cannot_be_exchanged(made: tuple[Path, Path, Path], box: tuple[Path, Path]) -> None:
    """A kill between two renames leaves the old bundle aside; the next call moves it back."""
    delta, bundle = box
    aside = bundle.with_name(".bundle-0a1b2c3d")
    (aside / "new").mkdir(parents=True)
    bundle.rename(aside / "old")
    apply_delta(delta, bundle)
    assert content_of(bundle) == content_of(made[1])
    assert names(bundle.parent) == ["bundle"]


def test_one_at_a_time(box: tuple[Path, Path]) -> None:
    with alone_with(box[1]):
        refused(*box, "another process replaces it")
    apply_delta(*box)


def test_variables_of_the_old_bundle(
    made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new bundle may use the variables of the old one in the same addresses, and in no other ones."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def with_source(source: str, name: str, origin: Path) -> Path:
        folder = Path(shutil.copytree(origin, tmp_path / name))
        text = (folder / MANIFEST).read_text()
        (feed,) = open_bundle(folder).manifest.feeds.values()
        (folder / MANIFEST).write_text(text.replace(feed.source, source))
        return folder

    secret = "rtsp://${CAMERA_PASSWORD}@camera/live"
    old = with_source(secret, "old", made[0])
    remember_variables(open_bundle(old))
    for source, allowed in ((secret, ("CAMERA_PASSWORD",)), ("rtsp://elsewhere/${CAMERA_PASSWORD}", ())):
        new = with_source(source, f"new{len(allowed)}", made[1])
        step = delta_between(old, new, tmp_path / f"step{len(allowed)}")
        done = apply_delta(step, old, output=tmp_path / f"made{len(allowed)}")
        assert known_variables(done.bundle) == allowed


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_blob_is_not_sent(damaged: int, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    old, new = (Path(shutil.copytree(made[place], tmp_path / f"{place}")) for place in (0, 1))
    blob = (old, new)[damaged] / "weights.bin"
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{blob}: content is damaged"):
        delta_between(old, new, tmp_path / "step")
    assert not (tmp_path / "step").exists()


def test_a_blob_with_other_bytes_cannot_be_sent(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    new = Path(shutil.copytree(made[1], tmp_path / "new"))
    content = open_bundle(new).manifest
    holes = sorted(content.segments.values(), key=lambda each: each.offset)
    with (new / "weights.bin").open("r+b") as file:
        file.seek(holes[0].offset + holes[0].length)
        file.write(b"x")
    digest = content_of(new)["weights.bin"]
    text = (new / MANIFEST).read_text()
    (new / MANIFEST).write_text(text.replace(content.files["weights.bin"].sha256, digest))
    with pytest.raises(BundleError, match=r"weights\.bin: has bytes beside its tensors, so no delta can make it"):
        delta_between(made[0], new, tmp_path / "step")
    assert not (tmp_path / "step").exists()
