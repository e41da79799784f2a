"""Encoders that were compiled with an option are served with the same, and only then."""

import subprocess
import sys

import harness
import pytest

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv1d(1, 8, 64, stride=32)
        self.two = nn.Conv1d(8, 8, 8, stride=4)

    def forward(self, x):
        return self.two(self.one(x.unsqueeze(1)).relu()).relu().mean(2)

"""
SAVE = """
import torch
from net import Net

net = Net().eval()
torch.save(net.state_dict(), "weights.pt")
torch.save(net, "module.pt")
torch.export.save(torch.export.export(net, (torch.zeros(1, 8000),)), "archive.pt")
"""


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("weights.pt", ("--factory", "net:Net", "--sample-rate", "8000")),
        ("module.pt", ("--unsafe-load", "--sample-rate", "8000")),
        ("archive.pt", ("--sample-rate", "8000")),
    ],
)
def test_what_was_compiled_with_an_option_is_served_with_it(tmp_path, encoder, options):
    (tmp_path / "net.py").write_text(NET)
    subprocess.run([sys.executable, "-W", "ignore", "-c", SAVE], cwd=tmp_path, check=True)
    compiling = ["compile", encoder, *options, "--targets", "rpi4", "--cuts", "one", "-o", "bundle"]
    harness.Process(tmp_path / "compile.log", *compiling).finish()

    refused = harness.Process(tmp_path / "refused.log", "server", "run", encoder, "bundle", "--state", "refused")
    with pytest.raises(AssertionError, match=f"the bundle was compiled with .*{options[0]}.*; give the same here"):
        refused.finish()

    server = harness.Server(tmp_path, tmp_path / encoder, tmp_path / "bundle", "--no-training", *options)
    try:
        source = harness.write_wav(tmp_path / "sound.wav", 6.0, seed=1, rate=8000)
        device = harness.Device(tmp_path, server, "pi-1", source)
        report = device.finish()
        assert report["errors"] == {}
        assert {result["generation"] for result in device.results()} == {1}
        assert server.counted("pi-1") == len(device.results()) == 11
    finally:
        server.process.signal(harness.signal.SIGTERM)
