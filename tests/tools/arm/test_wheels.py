import pytest

from tools.arm import wheels
from tools.arm.debian import Unavailable


def test_a_package_index_that_is_too_slow_is_one_line(tmp_path):
    with pytest.raises(Unavailable, match=r"^pip download: no end within 0\.01 s; the package index may be slow$"):
        wheels.pip("download", "--dest", str(tmp_path), "numpy", timeout_s=0.01)
