"""Work is counted as torch counts it, and the roofline follows its formula."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from runtime_edge.errors import UsageError
from runtime_edge.formats.encoder.log_mel_info import LogMelInfo
from runtime_edge.formats.manifest import FrontEndInfo
from streamsplit_compile.cost.cost_model import BlockWork, count_macs, count_work, fft_work, predict
from streamsplit_compile.cost.targets import load_target


class SmallCnn(nn.Module):
    """Strided, grouped, transposed and 1-d convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding="same")
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 6, 5, dilation=2)
        self.head = nn.Linear(6, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.up(self.depthwise(self.stem(image)))
        return cast(torch.Tensor, self.head(self.line(features.flatten(2)).mean(2)))


class AttentionBlock(nn.Module):
    """Multi-head attention as written by hand, fused, and by matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(32, 96)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mixing = nn.Parameter(torch.randn(32, 12))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        heads = self.projection(tokens).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        fused = nn.functional.scaled_dot_product_attention(query, key, value)
        weights = torch.softmax(query @ key.transpose(-1, -2), -1)
        both = torch.matmul(weights, value) + fused
        tokens = both.transpose(1, 2).reshape(batch, length, width)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return torch.einsum("blw,wo->blo", mixed, self.mixing).mean(1)


def exported(module: nn.Module, *shape: int, dynamic: bool = True) -> fx.GraphModule:
    example = torch.zeros(2 if dynamic else 1, *shape)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    graph = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


@pytest.mark.parametrize(("module", "shape"), [(SmallCnn(), (3, 20, 24)), (AttentionBlock(), (17, 32))])
@pytest.mark.parametrize("dynamic", [True, False])
def test_macs_are_those_of_torch(module: nn.Module, shape: tuple[int, ...], dynamic: bool) -> None:
    work = count_work(exported(module, *shape, dynamic=dynamic))

    # With gradients and the plain kernel: torch does not count its fused attention for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape))

    assert work.macs * 2 == counter.get_total_flops()


def test_other_matmuls_are_counted() -> None:
    class Matmuls(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            square = torch.mm(x, x.t())
            stacked = torch.bmm(square[None], square[None])
            return torch.addmm(x, square, x) + torch.baddbmm(stacked, stacked, stacked)[0, :, :1]

    graph = exported(Matmuls(), 5, dynamic=False)
    assert [count for node in graph.graph.nodes if (count := count_macs(node))] == [5, 1, 5, 1]


class Recurrent(nn.Module):
    """A recurrent layer over (batch, steps, features), or a cell over (batch, features)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x)
        return cast(torch.Tensor, out[0] if isinstance(out, tuple) else out)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("dynamic", [True, False])
def test_recurrent_layers_are_counted_by_the_textbook(kind: type[nn.RNNBase], gates: int, dynamic: bool) -> None:
    steps, features, hidden = 11, 8, 5
    module = Recurrent(kind(features, hidden, num_layers=2, bidirectional=True, batch_first=True))
    first, second = (gates * hidden * (width + hidden) for width in (features, 2 * hidden))
    assert count_work(exported(module, steps, features, dynamic=dynamic)).macs == steps * 2 * (first + second)


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)])
def test_recurrent_cells_are_counted_by_the_textbook(kind: type[nn.RNNCellBase], gates: int) -> None:
    module = Recurrent(kind(8, 5))  # type: ignore[call-arg]
    assert count_work(exported(module, 8, dynamic=False)).macs == gates * 5 * (8 + 5)


def test_bytes_kernels_and_peak_of_a_graph_counted_by_hand() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.relu(self.norm(self.conv(x))) + x).flatten(1)

    work = count_work(exported(Residual(), 2, 4, 5))

    tensor = 2 * 4 * 5 * 4
    assert work == BlockWork(
        macs=2 * 4 * 5 * 2 * 9,
        weight_bytes=(2 * 2 * 9 + 2) * 4,  # batch norm is folded into the convolution, with its parameters
        activation_bytes=(tensor + tensor) + (2 * tensor + tensor),  # convolution, then addition
        kernels=2,
        peak_activation_bytes=3 * tensor,  # addition: the input, the other branch, the sum
    )


def test_a_tensor_that_is_not_read_again_frees_its_memory() -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(torch.sigmoid(torch.exp(x.reshape(-1, 2, 10)))).mean(2)

    assert count_work(exported(Chain(), 20)).peak_activation_bytes == 2 * 20 * 4


def test_a_norm_or_relu_that_cannot_be_folded_is_a_kernel() -> None:
    class Unfolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(self.norm(x))
            return torch.relu(x) * x  # the convolution's output is needed as it is

    assert count_work(exported(Unfolded(), 2, 4, 4)).kernels == 4


def test_what_depends_on_constants_alone_costs_nothing() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.matrix @ self.matrix)

    work = count_work(exported(Constant(), 8))
    assert (work.macs, work.kernels, work.weight_bytes) == (64, 1, 8 * 8 * 4)


def test_the_roofline_by_hand() -> None:
    target = load_target("rpi4")  # 12 GMAC/s, 5 GB/s, 40 us + 12 us a kernel, 6.4 - 2.7 W
    bound_by_compute = predict(BlockWork(24_000_000, 4000, 1_000_000, 10, 50_000), target)
    assert bound_by_compute.ms == pytest.approx(2.0 + 0.040 + 0.120)
    assert bound_by_compute.mj == pytest.approx(3.7 * 2.16)
    assert bound_by_compute.peak_memory_bytes == 54_000
    bound_by_memory = predict(BlockWork(1000, 15_000_000, 10_000_000, 1, 50_000), target)
    assert bound_by_memory.ms == pytest.approx(5.0 + 0.040 + 0.012)


def test_precision_changes_rates_and_bytes() -> None:
    target = load_target("rpi4")
    work = BlockWork(18_000_000, 4_000_000, 1_000_000, 0, 80_000)
    assert predict(work, target, "int8").ms == pytest.approx(1.0 + 0.040)
    assert predict(work, target, "int8").peak_memory_bytes == 1_020_000
    assert predict(work, target, "fp16").peak_memory_bytes == 2_080_000
    with pytest.raises(UsageError, match="no precision 'int4'"):
        predict(work, target, "int4")


def test_a_slower_target_takes_longer_and_costs_are_additive_but_for_the_session() -> None:
    work = count_work(exported(SmallCnn(), 3, 20, 24))
    times = [predict(work, load_target(name)).ms for name in ("m2", "rpi5", "rpi4", "rpi-zero-2w")]
    assert times == sorted(times)
    assert times[0] < times[-1] / 5


def front_end(**changes: Any) -> FrontEndInfo:
    log_mel = LogMelInfo(n_fft=512, win_length=400, hop_length=160, n_mels=64, f_min=0.0, f_max=8000.0, eps=1e-6)
    return FrontEndInfo(
        **{"sample_rate": 16_000, "window_samples": 16_000, "hop_samples": 8000, "details": {}, "log_mel": log_mel}
        | changes
    )


def test_a_front_end_by_fft_costs_its_new_frames_on_one_thread() -> None:
    overlapping, apart = fft_work(front_end()), fft_work(front_end(hop_samples=16_000))
    assert overlapping is not None
    assert apart is not None
    assert overlapping.macs / apart.macs == pytest.approx(50 / 98)
    parallel = dataclasses.replace(overlapping, serial=False)
    target = load_target("rpi4")
    launched = predict(dataclasses.replace(parallel, macs=0, activation_bytes=0, weight_bytes=0), target).ms
    assert predict(overlapping, target).ms - launched == pytest.approx(
        target.threads * overlapping.macs / (target.gmacs_per_s("fp32") * 1e6)
    )
    assert fft_work(front_end(log_mel=None)) is None
