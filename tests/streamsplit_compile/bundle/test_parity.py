import msgspec
import numpy as np
import pytest
import torch
from torch import fx

from runtime_edge.errors import CheckFailed
from runtime_edge.formats.encoder.parts import Agreement, CutParity
from runtime_edge.formats.manifest import Parity
from streamsplit_compile.bundle.calibrate import calibrate_cut, calibration_windows
from streamsplit_compile.bundle.parity import Prover, agreement, check_parity, shortfalls
from streamsplit_compile.encoder.segment import in_float64, run_segments, split


@pytest.fixture(scope="module")
def chain(tiny_encoder, small_bundle):
    """Segments, windows, the activations of torch at each cut, and the bundle's cuts."""
    names = [item.name for item in small_bundle.manifest.info.cuts]
    cuts = [candidate for candidate in tiny_encoder.graph.candidates if candidate.name in names]
    segments = split(tiny_encoder.graph, cuts)
    windows, _ = calibration_windows(None, 4000, 1024, 512, 6, 0)
    activations = [torch.from_numpy(windows)]
    with torch.inference_mode():
        for segment in segments:
            activations.append(segment(activations[-1]))
    stacked = [value.numpy()[:, None] for value in activations]
    return segments, windows, stacked, small_bundle.manifest.info.cuts


def progress(what, done, total):
    assert done < total


def test_torch_against_torch_is_exact_and_encodings_agree(chain):
    segments, windows, activations, cuts = chain
    parity = Prover(segments, windows).prove(cuts, activations, progress)
    assert parity.windows == len(windows)
    assert [list(found.wire) for found in parity.cuts] == [
        ["float32", "pcm16"],
        *[["float32", "float16", "int8"]] * (len(cuts) - 1),
    ]
    for found in parity.cuts:
        exact = found.wire["float32"]
        assert exact.by_uncertainty == [1.0] * 4
        assert found.prefix == msgspec.structs.replace(exact, by_uncertainty=[])
        assert found.prefix == Agreement(max_abs_error=0.0, cosine_median=1.0, cosine_worst=1.0)
        for name, value in found.wire.items():
            assert 0.99 < value.cosine_worst <= value.cosine_median <= 1.0, name


def test_an_error_at_the_cut_is_seen_there_and_in_the_embedding(chain):
    segments, windows, activations, cuts = chain
    wrong = [*activations[:2], activations[2] + np.float32(0.1), *activations[3:]]
    found = Prover(segments, windows).prove(cuts, wrong, progress).cuts[2]
    with torch.inference_mode():
        expected = torch.from_numpy(activations[-1][:, 0])
        by_hand = run_segments(segments[2:], torch.from_numpy(wrong[2][:, 0]))
    assert found.prefix.max_abs_error == pytest.approx(0.1, rel=1e-2)
    assert found.wire["float32"].max_abs_error == pytest.approx(float((by_hand - expected).abs().max()), rel=1e-2)
    assert found.wire["float32"].max_abs_error > 1e-3
    cosine = torch.nn.functional.cosine_similarity(by_hand, expected).numpy()
    assert found.wire["float32"].cosine_worst == pytest.approx(cosine.min(), abs=1e-6)
    assert found.wire["float32"].cosine_median <= np.median(cosine) + 1e-6


def test_the_same_bytes_at_a_cut_are_not_run_again(chain, monkeypatch):
    segments, windows, activations, cuts = chain
    ran = []
    prover = Prover(segments, windows)
    monkeypatch.setattr(
        "streamsplit_compile.bundle.parity.run_segments", lambda *given: (ran.append(given), run_segments(*given))[1]
    )
    first = prover.prove(cuts, activations, progress)
    times = len(ran)
    # float32 is what the encoder itself sees; the last cut's embedding is complete, whatever its encoding.
    assert times == sum(len(found.wire) - 1 for found in first.cuts)
    assert prover.prove(cuts, activations, progress) == first
    assert len(ran) == times


def test_values_where_the_encoder_is_undefined_are_no_agreement():
    found = torch.full((3, 6), torch.nan)
    undefined = agreement(found, torch.ones(3, 6))
    assert undefined.cosine_median == undefined.cosine_worst == 0.0
    assert undefined.max_abs_error > 1e38
    assert agreement(found.fill_(torch.inf), torch.ones(3, 6)).max_abs_error > 1e38


def test_silence_for_silence_agrees_and_for_sound_does_not():
    silence, sound = torch.zeros(1, 4), torch.ones(1, 4)
    assert agreement(silence, silence).cosine_worst == 1.0
    assert agreement(silence, sound).cosine_worst == 0.0


def test_a_range_that_is_too_narrow_shows_in_the_agreement(chain):
    segments, windows, activations, cuts = chain
    narrow = [cuts[0], calibrate_cut(cuts[1], activations[1] * 0.01), *cuts[2:]]
    found, fitting = (Prover(segments, windows).prove(given, activations, progress).cuts[1] for given in (narrow, cuts))
    assert found.wire["int8"].cosine_median < 0.999 < fitting.wire["int8"].cosine_median
    assert found.wire["float32"].max_abs_error == 0.0


def proved(errors, medians=None):
    """Parity of so many cuts over the float32 wire."""
    exact = [
        Agreement(max_abs_error=error, cosine_median=median, cosine_worst=median)
        for error, median in zip(errors, medians or [1.0] * len(errors), strict=True)
    ]
    return Parity(windows=1, cuts=[CutParity(prefix=item, wire={"float32": item}) for item in exact])


def test_the_worst_cut_is_named(chain):
    cuts = chain[3][:3]
    check_parity(cuts, proved([0.0, 1e-4, 0.0]))
    with pytest.raises(
        CheckFailed, match=rf"cut {cuts[1].name}: prefix and suffix are off by 2\.00e-01, allowed 1e-04"
    ):
        check_parity(cuts, proved([1e-3, 0.2, 0.0]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_never_passes(place, chain):
    cuts = chain[3][:3]
    errors = [0.0, 1e-5, 0.0]
    errors[place] = agreement(torch.full((1, 2), torch.nan), torch.ones(1, 2)).max_abs_error
    with pytest.raises(CheckFailed, match=f"cut {cuts[place].name}: "):
        check_parity(cuts, proved(errors))


@pytest.mark.parametrize("format_name", ["onnx", "tflite"])
def test_a_variant_below_its_floor_names_the_block_that_costs_most(format_name):
    medians = [1.0, 0.995, 0.97, 0.969]
    parity = {f"{format_name}-int8": proved([0.0] * 4, medians), f"{format_name}-fp32": proved([0.0] * 4, medians)}
    (line,) = shortfalls(["front", "middle", "back"], parity)
    assert line.startswith(f"{format_name}-int8: median cosine 0.9690, wanted 0.98; middle costs most (0.0250)")
    assert "--precision auto" in line
    assert not shortfalls(["front"], {f"{format_name}-int8": proved([0.0, 0.0], [1.0, 0.98])})


@pytest.mark.parametrize(("largest", "limit"), [(0.5, 1e-4), (1.0, 1e-4), (480.0, 0.048)])
def test_what_is_allowed_grows_with_embeddings_beyond_one(largest, limit):
    scale = fx.symbolic_trace(torch.nn.Identity())
    scale.meta["rows"] = None
    windows = np.array([[0.25, -largest], [0.0, 0.1]], np.float32)
    assert Prover([scale], windows).limit == pytest.approx(limit, rel=1e-6)


class Cancels(torch.nn.Module):
    """What is left of a sum whose terms cancel: float32 keeps a few digits of it."""

    def forward(self, x):
        return (x + 16000.0) - 16000.0


class Angles(torch.nn.Module):
    """Of sums that are next to nothing."""

    def forward(self, x):
        return torch.atan2((x + 1e5) - 1e5 - x, x) / 4


@pytest.mark.parametrize(
    ("module", "error", "allowed"),
    [
        (Cancels, 9e-5, ""),
        (Cancels, 3e-4, "blocks may be off by"),
        (torch.nn.Identity, 3e-4, None),
        (Cancels, 2e-3, None),
    ],
)
def test_more_is_allowed_where_float32_itself_is_off_and_that_is_told(chain, module, error, allowed):
    segment = fx.symbolic_trace(module().eval())
    segment.meta["rows"] = None
    windows = np.random.default_rng(0).uniform(-0.12, 0.12, (64, 32)).astype(np.float32)
    told = []
    prover = Prover([segment], windows, told.append)
    parity = proved([0.0, error])
    if allowed is None:
        for _ in range(2):  # a second variant is allowed no more than the first one
            with pytest.raises(CheckFailed, match="prefix and suffix are off"):
                prover.check(chain[3][:2], parity)
        return
    prover.check(chain[3][:2], parity)
    assert allowed in "".join(told)
    assert len(told) == bool(allowed)
    assert prover.limit <= 1e-3


def test_an_encoder_that_float32_cannot_compute_is_refused_with_that_reason(chain):
    segment = fx.symbolic_trace(Angles())
    segment.meta["rows"] = None
    prover = Prover([segment], np.random.default_rng(0).uniform(-0.1, 0.1, (8, 16)).astype(np.float32))
    with pytest.raises(CheckFailed, match=r"allowed 1e-03; in float32 torch itself is off by \de[+-]"):
        prover.check(chain[3][:2], proved([0.0, 0.5]))


def test_constants_and_casts_of_float32_are_float64_in_the_reference():
    class Casts(torch.nn.Module):
        def forward(self, x):
            return x.to(torch.float32) * torch.linspace(0, 1, 3, dtype=torch.float32)

    found = in_float64(fx.symbolic_trace(Casts()))(torch.tensor([1 / 3], dtype=torch.float64))
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.linspace(0, 1, 3, dtype=torch.float64) / 3)
