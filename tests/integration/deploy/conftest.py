"""Emulated systems of arm64, and the archive that is installed there."""

from pathlib import Path

import pytest
from archives import make_archive

from tools.arm.debian import DebianCache, Unavailable
from tools.arm.userland import Userland

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def userland(tmp_path_factory):
    """`userland(suite)` is a clean one; skips the test where there is none."""

    def userland(suite):
        try:
            return Userland.unpacked(
                DebianCache(ROOT / ".cache" / "arm"), tmp_path_factory.mktemp(suite) / "root", suite
            )
        except Unavailable as exc:
            pytest.skip(str(exc))

    return userland


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("archive"))
