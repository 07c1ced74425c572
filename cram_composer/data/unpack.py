"""Unpacking of compressed shards, bounded by the size that the index gives."""

from __future__ import annotations

from pathlib import Path

import xxhash

_CHUNK_BYTES = 4 << 20


class UnpackError(Exception):
    """A compressed file that is damaged, or larger than its index says."""


def unpack_zstd(source: Path, target: Path, size: int) -> str:
    """Unpack a zstd file of `size` bytes into the file `target`; return the xxh64 hash of the content.

    At most a chunk more than `size` is ever unpacked, since a small file can unpack to any size.

    Raises:
        UnpackError: not zstd, or not `size` bytes.
        OSError: the target cannot be written.
    """
    import pyarrow

    digest, left = xxhash.xxh64(), size
    with open(target, "wb") as file:
        try:
            stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(source)), "zstd")
        except (OSError, pyarrow.ArrowException) as error:
            raise UnpackError(_one_line(error)) from None
        with stream:
            while True:
                try:
                    chunk = stream.read(min(_CHUNK_BYTES, left + 1))
                except (OSError, pyarrow.ArrowException) as error:
                    raise UnpackError(_one_line(error)) from None
                left -= len(chunk)
                if left < 0:
                    raise UnpackError(f"more than {size} bytes")
                if not chunk:
                    break
                digest.update(chunk)
                file.write(chunk)
    if left:
        raise UnpackError(f"{size - left} bytes instead of {size}")
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
