"""zstd: in Python itself since 3.14, before that its backport, which is the same code."""

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
    )
else:
    from backports.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
    )

__all__ = [
    "CompressionParameter",
    "DecompressionParameter",
    "ZstdCompressor",
    "ZstdDecompressor",
    "ZstdDict",
    "ZstdError",
    "compress_frame",
    "decompress_frame",
    "get_frame_info",
]


def compress_frame(compressor: ZstdCompressor, data: bytes | memoryview) -> bytes:
    """One frame that states the length of its content; the compressor can be used again."""
    return compressor.compress(data, ZstdCompressor.FLUSH_FRAME)


def decompress_frame(decompressor: ZstdDecompressor, frame: bytes | memoryview, size: int) -> bytes | None:
    """Decompress a frame of `size` bytes; None if it holds more or less, or is incomplete. Wants a fresh decompressor.

    The size that the frame claims is checked first, and never more than `size` bytes are produced. Raises ZstdError
    if it is not a frame.
    """
    if get_frame_info(frame).decompressed_size != size:
        return None
    found = decompressor.decompress(frame, size)
    # With empty or full output the frame's end may be unread.
    if not decompressor.eof and not decompressor.needs_input:
        found += decompressor.decompress(b"", 1)
    return found if decompressor.eof and len(found) == size and not decompressor.unused_data else None
