"""What is no raw PCM, and what is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from runtime_edge.audio.files.recognise import decisive_bytes, recognised

AC3 = b"\x0b\x77\x7a\x36\x0c\x40"
"""The header of a frame of 96 kbit/s at 48 kHz: 384 bytes."""
E_AC3 = b"\x0b\x77\x00\xbf\x32\x87"
"""The same length, as E-AC-3 states it."""
LATM = b"\x56\xe0\x40"
SBC = b"\x9c\xb1\x20"
"""Sixteen blocks, mono, eight bands, 32 bits a block: 72 bytes."""


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ((AC3 + bytes(378)) * 2, "AC-3"),
        ((E_AC3 + bytes(378)) * 2, "AC-3"),
        ((LATM + bytes(64)) * 3, "AAC in LATM"),
        ((SBC + bytes(69)) * 5, "SBC"),
        ((b"\xad\0\0" + bytes(54)) * 5, "SBC"),
        (b'{"time": "2024-01-01", "levels": [1, 2, 3]}', "JSON"),
        ('{"Gerät": "Brücke", "levels": [1, 2, 3]}'.encode(), "JSON"),
        (b"\xef\xbb\xbf[1, 2, 3, 4, 5, 6, 7, 8]", "JSON"),
        (b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>", "a web page"),
        (b"time,device,level\n12:00,pi-1,-3.0\n", "text"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n", "text"),
        (b"\0\0\1\xba\x44" + bytes(40), "an MPEG program stream"),
        (b"\0\0\0\x18stypmsdh" + bytes(40), "MP4"),
        (b"\xfe\x7f\1\x80" + bytes(40), "DTS"),
        (b"\x80\x39\xff\xd8\xf8ro\xba" + bytes(40), "TrueHD"),
    ],
)
def test_containers_codecs_and_text_are_known(data: bytes, name: str) -> None:
    assert recognised(data) == name


@pytest.mark.parametrize("kind", [kind for kind in soundfile.available_formats() if kind not in ("RAW", "SD2")])
def test_every_container_that_is_read_from_a_file_is_known(kind: str) -> None:
    file = io.BytesIO()
    file.name = "sound"
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000, format=kind)

    assert recognised(file.getvalue()[:4_000]) is not None


@pytest.mark.parametrize("data", [(AC3 + bytes(378)) * 2, (LATM + bytes(64)) * 3, (SBC + bytes(69)) * 5])
def test_frames_are_waited_for(data: bytes) -> None:
    known, frame = b"", len(data) // data.count(data[:3])
    while len(known) < decisive_bytes(known):
        known = data[: decisive_bytes(known)]
    assert recognised(known) is not None
    assert len(known) <= len(data)
    assert recognised(data[:frame] + bytes(2_000)) is None, "one frame may be chance"


def test_samples_are_none_of_these() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(300):
        level = drawn.choice([1, 30, 1_000, 30_000])
        tone = level * np.sin(np.arange(1_000) * drawn.random() + drawn.random() * 6)
        for samples in (tone, level * drawn.uniform(-1, 1, 1_000), np.full(1_000, level)):
            assert recognised(samples.astype("<i2").tobytes()) is None
