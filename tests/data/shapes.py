"""Encoders with one peculiarity each, all (batch, 64) -> (batch, 8), for the tests of cutting and lowering."""

import torch
from torch import nn
from torch.nn import functional

WINDOW = 64


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WINDOW, 16)
        self.second = nn.Linear(16, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Skip(Linear):
    """A residual across both layers: nothing between them can be cut."""

    def forward(self, x):
        x = x * 2
        return super().forward(x) + x[:, :8]


class Chunk(Linear):
    """A tuple of tensors, and two of them alive at once."""

    def forward(self, x):
        left, right = self.first(x).chunk(2, dim=1)
        return left * torch.sigmoid(right)


class Mask(Linear):
    """A boolean and an integer tensor alive beside the activation."""

    def forward(self, x):
        y = self.first(x)
        loud = y > 0
        largest = y.argmax(1, keepdim=True)
        y = self.second(torch.tanh(y))
        return torch.where(loud[:, :8], y, y * 0.5) + largest


class OnlyMask(Linear):
    """A boolean tensor alone crosses: it cannot be shipped."""

    def forward(self, x):
        return self.second((self.first(x) > 0).float())


class Inplace(Linear):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.first(x))
        y += 1
        y.mul_(0.5).clamp_(max=2.0)
        return self.second(y)


class InplaceInput(Linear):
    def forward(self, x):
        x.mul_(3.0)
        return super().forward(x)


class WriteThroughView(Linear):
    """The activation is changed through a view of it."""

    def forward(self, x):
        y = self.first(x)
        y[:, :4] = 0.0
        head = y[:, 4:8]
        head.add_(1.0)
        return self.second(y)


class ReadThroughView(Linear):
    """A view shows what was changed in its base."""

    def forward(self, x):
        y = self.first(x)
        pairs = y.view(-1, 2, 8)
        y.mul_(2.0)
        return self.second(pairs.flatten(1))


class FilledConstant(Linear):
    """A constant that is filled piece by piece, as Swin fills its attention mask."""

    def forward(self, x):
        mask = torch.zeros(8, 8)
        for number, rows in enumerate((slice(0, -4), slice(-4, -2), slice(-2, None))):
            mask[rows, rows] = number + 1.0
        return super().forward((x.view(-1, 8, 8) * mask).flatten(1))


class FoldedBatch(nn.Module):
    """Frames are folded into the batch and back, as window attention does."""

    def __init__(self):
        super().__init__()
        self.frame = nn.Linear(16, 4)
        self.wide = nn.Linear(4, 4)
        self.last = nn.Linear(16, 8)

    def forward(self, x):
        batch = x.shape[0]
        frames = torch.relu(self.frame(x.reshape(batch * 4, 16)))
        frames = self.wide(frames)
        return self.last(frames.reshape(batch, 16))


class StaticBatch(Linear):
    """Works for one window at a time only."""

    def forward(self, x):
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return super().forward(x.reshape(1, WINDOW))


class NoGrad(Linear):
    """The first layer is frozen: torch.export puts it into a graph of its own."""

    def forward(self, x):
        with torch.no_grad():
            frozen = torch.relu(self.first(x))
        return self.second(frozen)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.gru(x.view(-1, 8, 8))[0][:, -1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        frames = x.view(-1, 8, 8)
        found, _ = self.inner(frames, frames, frames, need_weights=False)
        return self.norm(frames + found).mean(1)


class Convolutional(nn.Module):
    """Convolutions with and without bias, groups and a norm that is not behind a convolution."""

    def __init__(self):
        super().__init__()
        self.before = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm2 = nn.BatchNorm2d(4, affine=False)
        self.point = nn.Conv2d(4, 8, 1)
        for norm in (self.before, self.norm, self.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3.0)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        y = self.norm(self.conv(self.before(x.view(-1, 1, 8, 8))))
        shared = self.norm2(self.depthwise(functional.hardswish(y)))
        return functional.silu(self.point(shared)).mean((2, 3))


GOOD = [
    Linear,
    Skip,
    Chunk,
    Mask,
    OnlyMask,
    Inplace,
    InplaceInput,
    WriteThroughView,
    ReadThroughView,
    FilledConstant,
    FoldedBatch,
    StaticBatch,
    NoGrad,
    Recurrent,
    Attention,
    Convolutional,
]


def make(kind):
    torch.manual_seed(0)
    module = kind().eval()
    module.window_samples, module.sample_rate = WINDOW, 1000
    return module
