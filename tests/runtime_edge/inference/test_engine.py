import numpy as np
import pytest

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import ENCODINGS, CutCodec
from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.wire import decode_frame
from runtime_edge.inference.engine import Engine
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.soundscape import soundscape


@pytest.fixture(scope="module")
def engine(small_bundle):
    return Engine(small_bundle, "onnx-fp32")


@pytest.fixture(scope="module")
def window():
    # One of those that the bundle was calibrated on, so that int8 holds it.
    return soundscape((1024 + 3 * 512) / 4000, 4000, seed=0)[512 : 512 + 1024]


def server_side(bundle: Bundle, frame: bytes) -> np.ndarray:
    ((header, payload),) = decode_frame(frame)
    return CutCodec(bundle.manifest.info.cuts[header.cut], ENCODINGS[header.encoding]).decode(
        payload, header.compressed
    )


def test_a_frame_says_what_the_device_knows(engine, window):
    step = engine.run(window, window=17, capture_ns=123456789, cut=2, uncertainty=0.25, finish=False)
    ((header, _),) = decode_frame(step.frame)
    assert (header.window, header.capture_ns, header.generation, header.cut) == (17, 123456789, 1, 2)
    assert header.uncertainty == pytest.approx(0.25, abs=1e-5)
    assert header.model == model_number(engine.bundle.manifest)
    assert step.encoding == ENCODINGS[header.encoding] == "int8"
    assert step.embedding is None


def test_the_server_gets_the_activation_of_every_cut(engine, window, small_bundle):
    reference = Prefix(small_bundle)
    for cut in range(engine.last_cut + 1):
        step = engine.run(window, 0, 0, cut, 0.0, finish=False)
        reference.start(window)
        activation = reference.advance(cut)
        error = np.abs(server_side(small_bundle, step.frame) - activation).max()
        assert error <= 0.01 * np.ptp(activation)
        assert (step.embedding is not None) == (cut == engine.last_cut)


def test_finishing_gives_the_embedding_whatever_was_shipped(engine, window):
    expected = engine.embed(window)
    for cut in range(engine.last_cut + 1):
        step = engine.run(window, 0, 0, cut, 0.0, finish=True)
        assert np.array_equal(step.embedding, expected)


def test_a_frame_does_not_depend_on_the_windows_before(engine, window):
    expected = [engine.run(window, 0, 0, cut, 0.0, False).frame for cut in range(engine.last_cut + 1)]
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = rng.uniform(-1, 1, 1024).astype(np.float32)
        engine.run(other, 1, 1, int(rng.integers(engine.last_cut + 1)), 0.5, bool(rng.integers(2)))
        cut = int(rng.integers(engine.last_cut + 1))
        assert engine.run(window, 0, 0, cut, 0.0, False).frame == expected[cut]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("int8", ["pcm16", "int8", "float16"]),
        ("float16", ["pcm16", "float16", "float16"]),
        ("float32", ["pcm16", "float32", "float32"]),
    ],
)
def test_each_cut_has_its_encoding(small_bundle, window, encoding, expected):
    engine = Engine(small_bundle, "onnx-fp32", encoding)
    first, *inner, last = (engine.run(window, 0, 0, cut, 0.0, False).encoding for cut in range(engine.last_cut + 1))
    assert [first, *set(inner), last] == expected


def test_an_encoding_that_no_cut_has_is_refused(small_bundle):
    for encoding in ("pcm16", "mp3", ""):
        with pytest.raises(UsageError, match=f"encoding '{encoding}': expected one of int8, float16, float32"):
            Engine(small_bundle, "onnx-fp32", encoding)


def test_an_engine_finishes_only_where_its_memory_limit_has_room(small_bundle, window, engine):
    limited = Engine(small_bundle, "onnx-fp32", memory_limit_mb=1.0)
    assert limited.embed(window) is None
    assert limited.run(window, 0, 0, 1, 0.0, finish=True).embedding is None
    whole = limited.run(window, 0, 0, limited.last_cut, 0.0, finish=False)
    assert np.array_equal(whole.embedding, engine.embed(window)), "a cut that was chosen always runs"
    assert 0 <= limited.ready() < 1e-5


def test_it_knows_its_bundle(engine, small_bundle):
    assert engine.cut_names == [cut.name for cut in small_bundle.manifest.info.cuts]
    assert engine.generation == 1
    assert engine.last_cut == len(engine.cut_names) - 1
    assert 0 <= engine.ready() < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_an_impossible_window_still_makes_frames(engine, small_bundle, value):
    window = np.full(1024, value, np.float32)
    for cut in range(engine.last_cut + 1):
        frame = engine.run(window, 0, 0, cut, 0.0, False).frame
        assert np.isfinite(server_side(small_bundle, frame)).all()
