"""Reads what stands in the broker's buckets, as a device does."""

from __future__ import annotations

from runtime_edge.formats import minisign
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.head import Head
from runtime_edge.formats.records.release import Release, decode_release
from runtime_edge.formats.records.table import SplitterTable


def read_release(data: bytes, trusted: minisign.PublicKey | None = None, key: str | None = None) -> Release:
    return decode_release(open_record(data, "release", key, trusted, "test").body, "test")


def read_table(data: bytes, trusted: minisign.PublicKey | None = None, key: str | None = None) -> SplitterTable:
    return SplitterTable.from_json(open_record(data, "table", key, trusted, "test").body, "test")


def read_head(data: bytes, trusted: minisign.PublicKey | None = None, key: str | None = None) -> Head:
    return Head.from_json(open_record(data, "head", key, trusted, "test").body, "test")
