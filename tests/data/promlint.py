"""What is wrong with names and help texts of a metrics page by Prometheus's published rules, and promtool itself."""

import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

_NOT_BASE_UNITS = {
    "minutes", "hours", "days", "weeks", "milliseconds", "microseconds", "nanoseconds", "kelvins", "fahrenheit",
    "bits", "kilobytes", "megabytes", "gigabytes", "kilobits", "megabits", "inches", "yards", "miles", "calories",
    "pounds", "ounces", "percent",
}  # fmt: skip
_ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
_TYPES = {"counter", "gauge", "histogram", "summary", "untyped"}


def problems(page: str) -> list[str]:
    """One line for each rule that a metric breaks; empty when the page is clean."""
    found, names = [], re.findall(r"(?m)^# TYPE (\S+) (\S+)$", page)
    if len({name for name, _ in names}) < len(names):
        found.append("a metric comes twice")
    for family in text_string_to_metric_families(page):
        samples = family.samples
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found += [f"{name}: {what}" for what in _of_name(name, family.type)]
        if not family.documentation.strip():
            found.append(f"{name}: no help text")
        if family.type == "counter" and any(sample.name != name for sample in samples):
            found.append(f"{name}: a counter must end in _total")
        if family.type != "histogram" and any("le" in sample.labels for sample in samples):
            found.append(f"{name}: only a histogram has a label le")
        found += [f"{name}: label {label}" for one in samples for label in one.labels if not _plain(label)]
    return found


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def said_by_promtool(page: bytes) -> str:
    """What `promtool check metrics` prints; empty when the page is clean."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    said = (done.stdout + done.stderr).decode()
    return said or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def _of_name(name: str, kind: str) -> list[str]:
    words = set(name.split("_"))
    said = [f"use a base unit instead of {unit}" for unit in sorted(words & _NOT_BASE_UNITS)]
    said += [f"write {word} out" for word in sorted(words & _ABBREVIATIONS)]
    said += [f"the name says its type, {word}" for word in sorted(words & _TYPES)]
    if not _plain(name):
        said.append("lower-case letters, digits and _ alone")
    if kind != "counter" and name.endswith("_total"):
        said.append("only a counter ends in _total")
    if name.endswith(("_count", "_sum", "_bucket")):
        said.append("ends as a part of a histogram does")
    return said


def _plain(name: str) -> bool:
    return re.fullmatch(r"[a-z_][a-z0-9_]*", name) is not None
