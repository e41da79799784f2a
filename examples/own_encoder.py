"""An encoder of your own: any torch module from waveforms to vectors of length 1, compiled into a bundle.

python examples/own_encoder.py bundle/

To train it on a server, register it under the entry point group `streamsplit.encoders`. Or save its state_dict and name
its code, for `ssc server run` as for `ssc compile weights.pt --factory own_encoder:OwnEncoder`.
"""

import sys

import torch
from torch import nn

import streamsplit_compile
from streamsplit_models import FrontEnd, GlobalAveragePool, LogMel, Normalize


class OwnEncoder(nn.Module):
    """Waveform (batch, 16000) at 16 kHz -> unit embedding (batch, 32)."""

    sample_rate = 16_000
    window_samples = 16_000

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(FrontEnd(n_mels=32))
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = GlobalAveragePool()
        self.normalize = Normalize()

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Each of these modules may become a cut."""
        return self.normalize(self.pool(self.deep(self.stem(self.log_mel(waveform)))))


if __name__ == "__main__":
    bundle = streamsplit_compile.compile(OwnEncoder(), sys.argv[1], targets=["rpi4"])
    print(bundle.path, [cut.name for cut in bundle.manifest.info.cuts])
    print(streamsplit_compile.advise(bundle, link="lte")[0].sentence())
