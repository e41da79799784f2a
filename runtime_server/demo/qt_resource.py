"""Reads files from a Qt resource file (`rcc`), in which programs such as GCompris keep their sounds.

It has a header (`qres`, version, positions of the tree, the data and the names), a tree with entries of 14 bytes (22
from version 2 on), and data preceded by its length; numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from runtime_edge.errors import FormatError

_FOLDER, _COMPRESSED = 2, 1 | 4
_MOST = 100_000
"""Maximum number of tree entries: in a damaged file, a folder may contain itself."""


def stored_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and contents of each file stored uncompressed; compressed ones are left out. Raises FormatError."""
    try:
        if data[:4] != b"qres":
            raise FormatError("not a Qt resource file: does not begin with qres")
        version, tree, files, names = struct.unpack_from(">4I", data, 4)
        entry_bytes = 22 if version >= 2 else 14
        waiting, seen = [(0, "")], 0
        while waiting:
            index, folder = waiting.pop()
            seen += 1
            if seen > _MOST:
                raise FormatError(f"Qt resource file: more than {_MOST} entries")
            at = tree + index * entry_bytes
            name_at, flags = struct.unpack_from(">IH", data, at)
            path = f"{folder}/{_name(data, names + name_at)}" if index else ""
            if flags & _FOLDER:
                count, first = struct.unpack_from(">2I", data, at + 6)
                waiting += [(child, path) for child in range(first, first + min(count, _MOST))]
            elif not flags & _COMPRESSED:
                (offset,) = struct.unpack_from(">I", data, at + 10)
                (size,) = struct.unpack_from(">I", data, files + offset)
                yield path, data[files + offset + 4 : files + offset + 4 + size]
    except (struct.error, UnicodeDecodeError) as exc:
        raise FormatError(f"Qt resource file: damaged ({exc})") from None


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")
