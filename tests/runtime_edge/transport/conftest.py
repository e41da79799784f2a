"""SQLite as the spool uses it."""

import sqlite3

import pytest


@pytest.fixture
def connections(monkeypatch):
    """Every connection that is made from here on, in order."""
    made, connect = [], sqlite3.connect

    def kept(*arguments, **options):
        made.append(connect(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", kept)
    return made
