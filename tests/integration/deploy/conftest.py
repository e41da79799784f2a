"""The archive that is installed on emulated systems."""

import pytest
from archives import make_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("archive"))
