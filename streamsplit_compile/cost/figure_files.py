"""Finds files of figures: those in the package by name, a user's own by its path."""

from __future__ import annotations

from pathlib import Path

from runtime_edge.errors import UsageError


def names_in(folder: Path) -> list[str]:
    """Names of the files that come with the package, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def figure_file(folder: Path, name_or_path: str | Path, what: str) -> Path:
    """The file of that name in a folder, or the user's own. Raises UsageError listing the known names."""
    text = str(name_or_path)
    known = names_in(folder)
    if text in known:
        return folder / f"{text}.toml"
    if text.endswith(".toml") or Path(text).is_file():
        return Path(text)
    raise UsageError(f"no {what} {text!r}; there are {', '.join(known)}, or give the path of a .toml file")
