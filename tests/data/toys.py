"""Small encoders for tests, named to the compiler as `--factory toys:Tiny`."""

import torch
from torch import nn


def unit(features):
    return features / features.square().sum(1, keepdim=True).clamp(min=1e-24).sqrt()


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm1d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + x)


_WEIGHTS = {}


class Tiny(nn.Module):
    """Waveform (batch, 1024) at 4 kHz -> unit embedding (batch, 6), in a millisecond."""

    sample_rate = 4000
    window_samples = 1024

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv1d(1, 8, 16, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.down = nn.Sequential(nn.Conv1d(8, 12, 4, 4), nn.BatchNorm1d(12), nn.ReLU(inplace=True))
            self.residual = Residual(12)
            self.head = nn.Linear(12, 6)
            for norm in (self.stem[1], self.down[1], self.residual.bn):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 2.0)
        # Another thread may draw from the same generator meanwhile: within a process the first weights hold.
        first = {name: value.clone() for name, value in self.state_dict().items()}
        self.load_state_dict(_WEIGHTS.setdefault((type(self), seed), first))
        self.eval()

    def forward(self, waveform):
        x = self.stem(waveform.unsqueeze(1))
        x = self.residual(self.down(x))
        return unit(self.head(x.mean(2)))


def not_a_module():
    return "text"


def broken():
    raise ValueError("no such size")
