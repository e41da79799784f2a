import numpy as np
import pytest
import torch

from runtime_edge.errors import CheckFailed
from streamsplit_compile.calibrate import calibrate_cut, calibration_windows
from streamsplit_compile.parity import CutParity, check_parity, measure_cut
from streamsplit_compile.segment import run_segments, split


@pytest.fixture(scope="module")
def chain(tiny_encoder, small_bundle):
    """Segments, the activations of torch at each cut, the embeddings, and the bundle's cuts."""
    names = [item.name for item in small_bundle.manifest.info.cuts]
    cuts = [candidate for candidate in tiny_encoder.graph.candidates if candidate.name in names]
    segments = split(tiny_encoder.graph, cuts)
    windows, _ = calibration_windows(None, 4000, 1024, 512, 6, 0)
    activations = [torch.from_numpy(windows)]
    with torch.inference_mode():
        for segment in segments:
            activations.append(segment(activations[-1]))
    stacked = [value.numpy()[:, None] for value in activations]
    return segments, stacked, activations[-1], small_bundle.manifest.info.cuts


def test_torch_against_torch_is_exact_and_encodings_agree(chain):
    segments, activations, expected, cuts = chain
    for index, item in enumerate(cuts):
        result = measure_cut(item, activations[index], segments[index:], expected)
        assert result.cut == item.name
        assert result.max_abs_error == 0.0
        assert result.agreement["float32"] == pytest.approx(1.0, abs=1e-6)
        for name, value in result.agreement.items():
            assert 0.99 < value <= 1.0, name
            assert result.worst[name] <= value


def test_an_error_at_the_cut_is_seen_in_the_embedding(chain):
    segments, activations, expected, cuts = chain
    wrong = activations[2] + np.float32(0.1)
    result = measure_cut(cuts[2], wrong, segments[2:], expected)
    with torch.inference_mode():
        by_hand = run_segments(segments[2:], torch.from_numpy(wrong[:, 0]))
    assert result.max_abs_error == pytest.approx(float((by_hand - expected).abs().max()))
    assert result.max_abs_error > 1e-3


def test_values_where_the_encoder_is_undefined_are_no_agreement(chain):
    _, activations, expected, cuts = chain

    def undefined(activation):
        return torch.full((len(activation), 6), torch.nan)

    undefined.meta = {"rows": None}
    result = measure_cut(cuts[1], activations[1], [undefined], expected)
    assert set(result.agreement.values()) == {0.0}
    with pytest.raises(CheckFailed):
        check_parity([result])


def test_a_range_that_is_too_narrow_shows_in_the_agreement(chain):
    segments, activations, expected, cuts = chain
    narrow = calibrate_cut(cuts[1], activations[1] * 0.01)
    result = measure_cut(narrow, activations[1], segments[1:], expected)
    fitting = measure_cut(cuts[1], activations[1], segments[1:], expected)
    assert result.agreement["int8"] < 0.999 < fitting.agreement["int8"]
    assert result.max_abs_error == 0.0


def parity(name, error):
    return CutParity(name, error, {}, {})


def test_the_worst_cut_is_named():
    check_parity([parity("a", 0.0), parity("b", 1e-4)])
    with pytest.raises(CheckFailed, match=r"cut b: prefix and suffix are off by 2\.00e-01, allowed 1e-04"):
        check_parity([parity("a", 1e-3), parity("b", 0.2), parity("c", 0.0)])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_never_passes(place):
    results = [parity("a", 0.0), parity("b", 1e-5), parity("c", 0.0)]
    results[place] = parity("bad", float("nan"))
    with pytest.raises(CheckFailed, match="cut bad: "):
        check_parity(results)
