"""Signatures of deltas with ed25519, through the library ``cryptography`` (extra ``sign``)."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError, MissingExtraError

__all__ = ["NO_SIGNATURE", "SIGNATURE_BYTES", "is_signed_by", "read_public_key", "sign"]

SIGNATURE_BYTES = 64
"""Size in bytes of an ed25519 signature."""
NO_SIGNATURE = bytes(SIGNATURE_BYTES)
"""Bytes that stand in the place of the signature of a delta that is not signed."""
_MOST_KEY = 1 << 16
"""Maximum size in bytes of a file with a key."""
_MISSING = "signing of deltas"


def sign(private_key: Path, text: bytes) -> bytes:
    """Return the signature of a text.

    Args:
        private_key: PEM file with a private ed25519 key without a password, as ``openssl genpkey`` writes it.
        text: what is signed.

    Raises:
        InputError: the file has no such key.
        MissingExtraError: ``cryptography`` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise MissingExtraError(_MISSING, "sign") from error
    try:
        key = load_pem_private_key(_read(private_key), None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{private_key}: is no private key in PEM form without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{private_key}: is no ed25519 key; openssl genpkey -algorithm ed25519 makes one")
    return key.sign(text)


def read_public_key(path: Path) -> bytes:
    """Return the 32 bytes of the public ed25519 key in a PEM file, as ``openssl pkey -pubout`` writes it.

    Raises:
        InputError: the file has no such key.
        MissingExtraError: ``cryptography`` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError as error:
        raise MissingExtraError(_MISSING, "sign") from error
    try:
        key = load_pem_public_key(_read(path))
    except ValueError as error:
        raise InputError(f"{path}: is no public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is no ed25519 key")
    return key.public_bytes_raw()


def is_signed_by(public_key: bytes, signature: bytes, text: bytes) -> bool:
    """Return whether a signature of a text was made with the private key of a public one."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        InputError: the file cannot be read, or is too large to be a key.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: cannot be read: no such file")
        with path.open("rb") as file:
            data = file.read(_MOST_KEY + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MOST_KEY:
        raise InputError(f"{path}: is too large to be a key")
    return data
