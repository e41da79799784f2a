import pytest
from speech import RATE, SAMPLES, write_speech

from streamsplit_compile.audit.spoken_recordings import read_spoken


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Sixty recordings of two words by ten speakers."""
    return read_spoken(write_speech(tmp_path_factory.mktemp("spoken") / "speech"), RATE, SAMPLES)
