import os

import pytest


@pytest.fixture
def standard_input():
    """The writing end of a pipe that is this process's standard input."""
    before = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    with open(writing, "wb", buffering=0) as pipe:
        yield pipe
    os.dup2(before, 0)
    os.close(before)
