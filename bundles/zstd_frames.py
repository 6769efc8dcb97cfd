"""Compression of single pieces of data with Zstandard, and decompression within limits that are known before it."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["MOST_FRAME", "MOST_PREFIX", "compress", "decompress", "most_packed"]

MOST_FRAME = 4 << 20
"""Maximum size in bytes of the content of one Zstandard frame. Readers hold one frame in memory."""
MOST_PREFIX = 8 << 20
"""Maximum size in bytes of an old file that a new file is compressed against."""
_WINDOW_LOG = 24
"""Binary logarithm of the window in bytes: it covers an old file and a new one. Readers refuse larger windows."""


def compress(data: bytes, level: int, prefix: bytes = b"") -> bytes:
    """Return data as one Zstandard frame.

    Args:
        data: at most :data:`MOST_FRAME` bytes.
        level: compression level, from 1 (fast) to 19.
        prefix: data that the reader has; what ``data`` has in common with it takes almost no bytes.
    """
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.compression_level: level}
    if prefix:
        options[parameter.window_log] = _WINDOW_LOG
    packer = zstd.ZstdCompressor(options=options, zstd_dict=_dictionary(prefix))
    return packer.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def decompress(packed: bytes, size: int, prefix: bytes = b"") -> bytes:
    """Return the content of a frame that :func:`compress` made.

    No more than ``size`` bytes and a window of 16 MiB are held in memory, whatever the frame says.

    Args:
        packed: the frame.
        size: bytes that the content must have, above 0.
        prefix: data that the frame was compressed against.

    Raises:
        ValueError: the bytes are no frame, or the content has another size.
    """
    unpacker = zstd.ZstdDecompressor(
        zstd_dict=_dictionary(prefix), options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    )
    try:
        data = unpacker.decompress(packed, max_length=size)
        # A frame may end with bytes that give no content, such as a checksum.
        rest = b"" if unpacker.eof or unpacker.needs_input else unpacker.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise ValueError(f"not compressed as expected: {error}") from error
    if len(data) != size or rest or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its content is not {size} bytes")
    return data


def most_packed(size: int) -> int:
    """Return the maximum size in bytes of a frame whose content has ``size`` bytes; noise grows a little."""
    return size + (size >> 7) + 512


def _dictionary(prefix: bytes) -> tuple[zstd.ZstdDict, int] | None:
    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
