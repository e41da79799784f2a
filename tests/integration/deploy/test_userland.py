"""The emulated system that the tests of this folder install on."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CACHE = Path(__file__).parents[3] / ".cache" / "arm"


def test_network_and_trust_are_those_of_this_machine_now_and_not_of_when_it_was_cached(userland):
    userland("bookworm")
    names = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")
    for cached in CACHE.glob("userland-bookworm-*"):
        for name in names:
            (cached / name).parent.mkdir(parents=True, exist_ok=True)
            (cached / name).write_text("earlier")

    pi = userland("bookworm")
    for name in names:
        assert (pi.root / name).read_bytes() == (Path("/") / name).read_bytes()
