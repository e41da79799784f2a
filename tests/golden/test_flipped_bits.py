"""One flipped bit anywhere in a server's or a device's state directory is noticed, or makes no difference."""

import os
import random
import shutil
from pathlib import Path

import pytest
from golden_read import FORMATS

from runtime_edge.errors import SscError
from runtime_edge.updates.trial import Trials

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "0.2.0"
FLIPS = int(os.environ.get("SSC_TEST_FLIPS", "200"))
SEED = int(os.environ.get("SSC_TEST_SEED", "0"))


@pytest.mark.integration
@pytest.mark.parametrize("flips", [8, pytest.param(FLIPS, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
@pytest.mark.parametrize("side", ["server", "device"])
def test_a_flipped_bit_is_noticed_or_makes_no_difference(tmp_path, side, flips, caplog):
    start = shutil.copytree(GOLDEN, tmp_path / "start")
    (start / "device" / "updates.jsonl").unlink()  # lines of earlier versions have no checksum
    Trials(start / "device").note("update_failed", generation=2, reason="the self-test is off by 0.5")
    expected = FORMATS[side](start)  # every file has its checksum from now on
    again = FORMATS[side](shutil.copytree(start, tmp_path / "again"))
    files = sorted(file for file in (start / side).rglob("*") if file.stat().st_size and file.is_file())
    files = [file for file in files if file.name != "status.json"]  # for those who look: written anew every second
    chosen, unnoticed = random.Random(SEED), []
    for number in range(flips):
        copy = shutil.copytree(start, tmp_path / str(number))
        path = copy / chosen.choice(files).relative_to(start)
        bit = chosen.randrange(8 * path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        caplog.clear()
        try:
            found = FORMATS[side](copy)
        except SscError:
            continue
        if found not in (again, expected) and not caplog.records:
            unnoticed.append(f"bit {bit} of {path.relative_to(copy)}")
        shutil.rmtree(copy)
    assert not unnoticed, f"SSC_TEST_SEED={SEED}"
