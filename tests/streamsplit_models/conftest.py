import pytest
import torch
from torch import nn

from streamsplit_models.initialise import synthetic_sounds


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sounds():
    """Different synthetic sounds, none of them those that encoders settle on."""

    def make(count, sample_rate, samples):
        return synthetic_sounds(count, sample_rate, samples, torch.Generator().manual_seed(2**31))

    return make


@pytest.fixture(scope="session")
def exported_error():
    """Largest difference, at batch 1 and 3, between a module and its export with a dynamic batch."""

    def measure(module: nn.Module, waveform: torch.Tensor) -> float:
        batch = torch.export.Dim("batch")
        program = torch.export.export(module.eval(), (waveform[:2],), dynamic_shapes=({0: batch},)).module()
        with torch.no_grad():
            return max(float((program(waveform[:n]) - module(waveform[:n])).abs().max()) for n in (1, 3))

    return measure


@pytest.fixture(scope="session")
def check_encoder(exported_error, sounds):
    """The contract of every encoder."""

    def check(encoder: nn.Module, embedding_dim: int, parity: float = 1e-5) -> None:
        assert encoder.sample_rate == encoder.front_end.sample_rate
        assert encoder.window_samples == encoder.front_end.window_samples
        assert encoder.embedding_dim == embedding_dim
        assert not encoder.training
        waveform = sounds(3, encoder.sample_rate, encoder.window_samples)
        waveform[2] = 0.0
        with torch.no_grad():
            embedding = encoder(waveform)
        assert embedding.shape == (3, embedding_dim)
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
        assert exported_error(encoder, waveform) <= parity

    return check


@pytest.fixture(scope="session")
def check_start(sounds):
    """A fresh encoder depends on its seed alone, and tells sounds apart."""

    def check(factory) -> None:
        state = torch.get_rng_state()
        first, again, other = factory(seed=3), factory(seed=3), factory(seed=4)
        assert torch.equal(state, torch.get_rng_state())
        torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
        assert not torch.equal(first.projection.weight, other.projection.weight)
        waveform = sounds(24, first.sample_rate, first.window_samples)
        with torch.no_grad():
            embedding = first(waveform)
            quieter = first(waveform * 0.9)
        cosine = embedding @ embedding.T
        apart = cosine[~torch.eye(len(cosine), dtype=torch.bool)]
        assert apart.mean().abs() < 0.5
        assert apart.std() > 0.1
        assert ((embedding * quieter).sum(dim=1) > apart.quantile(0.9)).float().mean() > 0.9

    return check
