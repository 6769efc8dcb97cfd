"""Signed deltas: only those of the right key are accepted where a key is required."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from delta_bundles import content_of, noise, opened, retrained
from reloads import compiled

from gemel.bundles.apply_delta import apply_delta
from gemel.bundles.delta_format import PRELUDE_BYTES
from gemel.bundles.signature import read_public_key, sign
from gemel.bundles.write_delta import write_delta
from gemel.errors import BundleError, InputError, MissingExtraError


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two pairs of keys: ``a.pem`` and ``a.pub``, ``b.pem`` and ``b.pub``."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = tmp_path_factory.mktemp("keys")
    for name in "ab":
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(text)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def test_only_the_right_key(keys: Path, tmp_path: Path) -> None:
    old = compiled(tmp_path / "first", "a")
    new = retrained(old, tmp_path / "new", noise(0.1))
    signed = write_delta(*opened(old, new), tmp_path / "signed", key=keys / "a.pem").path
    unsigned = write_delta(*opened(old, new), tmp_path / "unsigned").path
    key = read_public_key(keys / "a.pub")
    before = content_of(old)
    with pytest.raises(BundleError, match="unsigned: is not signed; the key that was given is required"):
        apply_delta(unsigned, old, key=key)
    with pytest.raises(BundleError, match="signed: is signed with another key"):
        apply_delta(signed, old, key=read_public_key(keys / "b.pub"))
    # A signature of one delta in another one, whose own hash fits.
    other = write_delta(*opened(new, old), tmp_path / "other", key=keys / "a.pem").path
    data = bytearray(signed.read_bytes())
    data[20:84] = other.read_bytes()[20:84]
    import hashlib

    size = int.from_bytes(data[12:20], "little")
    data[84:PRELUDE_BYTES] = hashlib.sha256(data[20:84] + data[PRELUDE_BYTES : PRELUDE_BYTES + size]).digest()
    (tmp_path / "forged").write_bytes(data)
    with pytest.raises(BundleError, match="forged: is signed with another key"):
        apply_delta(tmp_path / "forged", old, key=key)
    assert content_of(old) == before
    shutil.copytree(old, tmp_path / "box")
    apply_delta(signed, tmp_path / "box")
    apply_delta(signed, old, key=key)
    assert content_of(old) == content_of(tmp_path / "box") == content_of(new)


def test_files_that_are_no_keys(keys: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    other = generate_private_key(SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "ec.pem").write_bytes(other.private_bytes(encoding, form, serialization.NoEncryption()))
    (tmp_path / "locked.pem").write_bytes(
        other.private_bytes(encoding, form, serialization.BestAvailableEncryption(b"x"))
    )
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "ec.pub").write_bytes(other.public_key().public_bytes(encoding, public))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "large").write_bytes(bytes(1 << 17))
    for name, message in (
        ("ec.pem", "is no ed25519 key; openssl genpkey -algorithm ed25519 makes one"),
        ("locked.pem", "is no private key in PEM form without a password"),
        ("text", "is no private key"),
        ("none", "no such file"),
        ("large", "is too large to be a key"),
    ):
        with pytest.raises(InputError, match=message):
            sign(tmp_path / name, b"text")
    for name, message in (("ec.pub", "is no ed25519 key"), ("text", "is no public key"), ("none", "no such file")):
        with pytest.raises(InputError, match=message):
            read_public_key(tmp_path / name)
    with pytest.raises(InputError, match="is no public key"):
        read_public_key(keys / "a.pem")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    for call in (lambda: sign(tmp_path / "x", b""), lambda: read_public_key(tmp_path / "x")):
        with pytest.raises(MissingExtraError, match=r"signing of deltas needs packages .*\[sign\]"):
            call()
