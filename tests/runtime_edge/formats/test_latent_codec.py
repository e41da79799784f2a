import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime_edge.errors import BundleError, FrameError
from runtime_edge.formats.latent_codec import SYMBOLS, TOTAL, LatentCodec, quantise
from streamsplit_compile.bottleneck.coding import coding_tables

SHAPE = (1, 4, 3, 5)
LATENTS = hnp.arrays(np.int8, SHAPE)


def usual(seed, windows=200):
    """Latents (windows, channels, rows, columns) as a bottleneck makes them: each channel with a spread of its own."""
    random = np.random.default_rng(seed)
    spread = np.array([20.0, 5.0, 1.0, 0.2]).reshape(1, -1, 1, 1)
    return np.clip(np.rint(random.laplace(size=(windows, *SHAPE[1:])) * spread), -128, 127).astype(np.int8)


def codec_for(values):
    return LatentCodec(coding_tables(values), SHAPE)


CODEC = codec_for(usual(0))


@given(latent=LATENTS, width=st.integers(1, SHAPE[1]))
def test_any_latent_comes_back_at_any_width_in_no_more_bytes_than_it_has_values(latent, width):
    payload, coded = CODEC.encode(latent.astype(np.float32), width)

    found = CODEC.decode(payload, coded, width)

    assert np.array_equal(found[:, :width], latent[:, :width])
    assert not found[:, width:].any()
    assert len(payload) <= width * 15


@given(values=hnp.arrays(np.int8, (7, *SHAPE[1:])), latent=LATENTS)
def test_tables_of_any_latents_code_any_other(values, latent):
    codec = codec_for(values)

    assert np.array_equal(codec.decode(*codec.encode(latent.astype(np.float32), 4), 4), latent)


@given(data=st.binary(max_size=80), coded=st.booleans(), width=st.integers(-3, 9))
@settings(max_examples=300)
def test_hostile_payloads_are_decoded_or_refused_in_one_line(data, coded, width):
    try:
        found = CODEC.decode(data, coded, width)
    except FrameError as exc:
        said = str(exc)
    else:
        assert found.shape == SHAPE
        assert 1 <= width <= SHAPE[1]
        said = "a latent"
    assert len(said.splitlines()) == 1


def test_every_truncated_or_longer_payload_is_refused():
    payload, coded = CODEC.encode(usual(1)[:1].astype(np.float32), 4)
    assert coded

    for wrong in [payload[:cut] for cut in range(len(payload))] + [payload + b"\0", payload + b"\1"]:
        with pytest.raises(FrameError):
            CODEC.decode(wrong, coded, 4)


def test_a_payload_as_long_as_the_plain_values_is_refused_before_it_is_decoded():
    with pytest.raises(FrameError, match="payload has 1000000 bytes, 4 channels have 60 before coding"):
        CODEC.decode(bytes(1_000_000), True, 4)


def test_coding_comes_within_4_bytes_and_3_percent_of_the_entropy():
    seen, unseen = usual(0, 4000), usual(1, 400)
    codec = codec_for(seen)
    bits = 0.0
    for channel in range(SHAPE[1]):
        counts = np.bincount(seen[:, channel].ravel().astype(int) + 128, minlength=SYMBOLS) + 0.05
        bits -= np.log2(counts / counts.sum())[unseen[:, channel].ravel().astype(int) + 128].sum()

    sent = [len(codec.encode(latent[None].astype(np.float32), 4)[0]) for latent in unseen]

    assert np.mean(sent) <= bits / 8 / len(unseen) * 1.03 + 4


def test_tables_and_payloads_are_these_very_bytes_on_every_processor():
    """What other machines must write and read; a change is another version of the format."""
    tables = np.full((4, SYMBOLS), 1, np.int64)
    tables[:, 120:137] = 3800
    tables[:, 128] += TOTAL - tables.sum(1)[0]
    latent = (np.arange(60) % 17 - 8).reshape(SHAPE).astype(np.float32)

    payload, coded = LatentCodec(tables.astype("<u2").tobytes(), SHAPE).encode(latent, 4)

    assert coded
    assert payload.hex() == "2dc003fee18fd6f1fbb641bfe00d143b209219b8aedd96018615e29041c17e5e2a8e"


def test_values_are_rounded_limited_to_8_bits_and_nan_is_zero():
    assert quantise(np.array([0.4, -1.6, 500.0, -np.inf, np.nan], np.float32)).tolist() == [0, -2, 127, -128, 0]


@pytest.mark.parametrize(
    "tables",
    [b"", bytes(4 * 512), np.full((4, SYMBOLS), 1, "<u2").tobytes(), b"\xff" * 4 * 512],
)
def test_tables_that_do_not_add_up_are_refused(tables):
    with pytest.raises(BundleError, match="coding tables"):
        LatentCodec(tables, SHAPE)
