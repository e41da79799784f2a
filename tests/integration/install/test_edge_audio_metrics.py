"""The extras `edge,audio,metrics`: a device that is a service (docs/operation.md)."""

import pytest

EXTRAS = "edge,audio,metrics"
BRINGS = {"edge", "audio", "metrics"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_service_is_written(terminal, tmp_path):
    printed = terminal.types("ssc edge install --systemd", f"--root {tmp_path / 'image'}")
    assert "ssc-edge.service" in printed
    unit = (tmp_path / "image" / "etc" / "systemd" / "system" / "ssc-edge.service").read_text()
    assert str(terminal.environment.script) in unit
    assert (tmp_path / "image" / "etc" / "ssc-edge.toml").exists()
    assert "onnxruntime" in terminal.types("ssc doctor")
