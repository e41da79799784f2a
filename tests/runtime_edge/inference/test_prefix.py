import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapting import TOLERANCES, adapt
from msgspec.structs import replace

from runtime_edge.errors import BackendError, BundleError, SelfTestError, UsageError
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.inference import prefix as prefix_module
from runtime_edge.inference.contract import RuntimeOptions, check_shape
from runtime_edge.inference.factory import open_backend
from runtime_edge.inference.onnx_backend import choose_providers
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bundle.compiler import recompile
from streamsplit_compile.encoder.encoders import read_tensors


@pytest.fixture(scope="module")
def prefix(small_bundle):
    return Prefix(small_bundle)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).uniform(-1, 1, (5, 1024)).astype(np.float32)


def in_torch(encoder, windows):
    with torch.inference_mode():
        return encoder.graph.module(torch.from_numpy(np.atleast_2d(windows))).numpy()


def test_embeddings_equal_the_torch_encoders(prefix, windows, tiny_encoder):
    found = np.stack([prefix.embed(window) for window in windows])
    np.testing.assert_allclose(found, in_torch(tiny_encoder, windows), atol=1e-4, rtol=0)


def test_embeddings_equal_those_of_resnet_in_torch(resnet_bundle, resnet_encoder):
    windows = np.random.default_rng(1).normal(0, 0.2, (2, 16000)).astype(np.float32)
    prefix = Prefix(resnet_bundle)
    found = np.stack([prefix.embed(window) for window in windows])
    np.testing.assert_allclose(found, in_torch(resnet_encoder, windows), atol=1e-4, rtol=0)


def test_every_cut_holds_what_torch_has_there(prefix, windows, tiny_encoder, small_bundle):
    values = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node):
            values[node.name] = super().run_node(node)
            return values[node.name]

    with torch.inference_mode():
        Recorder(tiny_encoder.graph.module).run(torch.from_numpy(windows[:1]))
    prefix.start(windows[0])
    for cut in small_bundle.manifest.info.cuts:
        found = prefix.advance(cut.index)
        assert found.shape == cut.shape
        np.testing.assert_allclose(found, values[cut.node].numpy(), atol=1e-5, rtol=0)


def test_the_order_of_cuts_makes_no_difference(prefix, windows):
    expected = {}
    for cut in range(prefix.last_cut + 1):
        prefix.start(windows[0])
        expected[cut] = prefix.advance(cut).copy()
    rng = np.random.default_rng(2)
    for _ in range(20):
        prefix.start(windows[1])
        prefix.advance(rng.integers(prefix.last_cut + 1))
        prefix.start(windows[0])
        for cut in rng.integers(prefix.last_cut + 1, size=4):
            assert np.array_equal(prefix.advance(int(cut)), expected[cut])


def test_advancing_runs_each_block_once(small_bundle, windows):
    prefix = Prefix(small_bundle)
    backend, runs = prefix.backend, []

    class Counted:
        def __init__(self, block):
            self.block = block

        def run(self):
            runs.append(self)
            self.block.run()

    prefix.backend = SimpleNamespace(load=lambda *arguments: Counted(backend.load(*arguments)))
    prefix.start(windows[0])
    for cut in (0, 2, 1, 2, prefix.last_cut, prefix.last_cut):
        prefix.advance(cut)
    assert len(runs) == len(set(runs)) == prefix.last_cut


def test_blocks_are_loaded_when_a_cut_first_needs_them(small_bundle, windows):
    prefix = Prefix(small_bundle)
    prefix.start(windows[0])
    prefix.advance(2)
    assert prefix.missing == list(range(2, prefix.last_cut))
    progress = []
    prefix.load_all(progress.append)
    assert progress == list(range(prefix.last_cut))
    assert not prefix.missing


def test_buffers_stay_where_they_are(prefix, windows):
    addresses = [buffer.ctypes.data for buffer in prefix.buffers]
    for window in windows:
        prefix.start(window)
        assert prefix.advance(prefix.last_cut) is prefix.buffers[-1]
    assert [buffer.ctypes.data for buffer in prefix.buffers] == addresses
    assert all(buffer.dtype == np.float32 and buffer.flags.c_contiguous for buffer in prefix.buffers)


def test_an_embedding_is_a_copy(prefix, windows):
    first = prefix.embed(windows[0])
    before = first.copy()
    prefix.embed(windows[1])
    assert np.array_equal(first, before)


@pytest.mark.parametrize("shape", [(1023,), (1025,), (1, 1024), (0,), ()])
def test_a_window_of_another_length_is_refused(prefix, shape):
    with pytest.raises(UsageError, match=r"this encoder takes \(1024,\)"):
        prefix.start(np.zeros(shape, np.float32))


def test_an_unknown_variant_is_refused(small_bundle):
    with pytest.raises(BundleError, match=r"no variant 'onnx-int8', only \['onnx-fp32'\]"):
        Prefix(small_bundle, "onnx-int8")


def test_the_self_test_passes_as_compiled_and_says_how_far_off(prefix):
    assert 0 <= prefix.self_test() < 1e-5


def test_the_self_test_notices_another_embedding(bundle_copy):
    import msgspec

    from runtime_edge.formats.bundle import Bundle

    opened = open_bundle(bundle_copy)
    info = opened.manifest.info
    for value in (0.5, np.nan):
        wrong = np.full(6, value, "<f4").tobytes()
        test = msgspec.structs.replace(info.self_test, embedding=wrong)
        metadata = msgspec.structs.replace(
            opened.manifest.additional_metadata, ssc=msgspec.structs.replace(info, self_test=test)
        )
        manifest = msgspec.structs.replace(opened.manifest, additional_metadata=metadata)
        with pytest.raises(SelfTestError, match="self-test embedding is off by"):
            Prefix(Bundle(bundle_copy, manifest, "", None)).self_test()


@pytest.fixture
def memory(monkeypatch):
    """`memory(prefix)`: pretend that a process holds `rest[0]` MB and 10 MB for each loaded block; gives the loads."""
    loads = []

    def watch(prefix, rest=(100.0,)):
        monkeypatch.setattr(prefix_module, "rss_mb", lambda: rest[0] + 10.0 * len(loaded(prefix)))
        load = prefix.load

        def counted(index):
            loads.append(index)
            return load(index)

        monkeypatch.setattr(prefix, "load", counted)
        return loads

    return watch


def loaded(prefix):
    return [index for index in range(prefix.last_cut) if index not in prefix.missing]


def test_under_a_memory_limit_the_embedding_is_the_same(prefix, windows, small_bundle):
    limited = Prefix(small_bundle, memory_limit_mb=1.0)
    for window in windows:
        assert np.array_equal(limited.embed(window), prefix.embed(window))
        assert loaded(limited) == [limited.last_cut - 1], "one block at a time"
    assert not limited.fits(limited.last_cut)
    assert limited.fits(0)


def test_a_memory_limit_unloads_the_deepest_blocks_that_were_not_needed_lately(small_bundle, windows, memory):
    prefix = Prefix(small_bundle, memory_limit_mb=135.0)  # room for three of the four blocks
    rest = [0.0]
    loads = memory(prefix, rest)
    prefix.embed(windows[0])  # what a block holds is known once it has been loaded
    rest[0] = 1000.0
    for _ in range(128):
        prefix.start(windows[0])
    assert loaded(prefix) == []
    rest[0] = 100.0
    loads.clear()
    prefix.start(windows[0])
    prefix.advance(3)
    assert (loaded(prefix), loads) == ([0, 1, 2], [0, 1, 2])
    assert prefix.fits(3)
    assert not prefix.fits(4)
    prefix.advance(4)
    assert loaded(prefix) == [0, 1, 3], "the one behind the cut made room"
    for window in windows:
        prefix.start(window)
        prefix.advance(2)
    assert loads == [0, 1, 2, 3], "switching among loaded cuts reloads nothing"
    prefix.start(windows[0])
    prefix.advance(3)
    assert loaded(prefix) == [0, 1, 2]


def test_blocks_not_needed_for_long_are_unloaded_while_the_process_is_above_its_limit(small_bundle, windows, memory):
    prefix = Prefix(small_bundle, memory_limit_mb=1000.0)
    rest = [100.0]
    memory(prefix, rest)
    prefix.embed(windows[0])
    for _ in range(200):
        prefix.start(windows[0])
        prefix.advance(1)
    assert loaded(prefix) == [0, 1, 2, 3]
    rest[0] = 975.0
    for _ in range(64):
        prefix.start(windows[0])
        prefix.advance(1)
    assert loaded(prefix) == [0, 1]


def test_a_new_generation_loads_only_what_has_changed(small_bundle, windows, tmp_path, tiny_file, memory):
    tensors = read_tensors(tiny_file)
    tensors["head.weight"] = tensors["head.weight"] * np.float32(1.5)
    windows = np.random.default_rng(0).normal(0, 0.1, (2, 1024)).astype(np.float32)
    new = recompile(small_bundle, tensors, tmp_path / "new", generation=2, windows=windows, reference=None)
    old = Prefix(small_bundle)
    before = old.embed(windows[0])
    following = Prefix(new, previous=old)
    loads = memory(following)
    after = following.embed(windows[0])
    assert loads == [following.last_cut - 1]
    assert np.array_equal(after, Prefix(new).embed(windows[0]))
    assert np.abs(after - before).max() > 1e-3
    assert np.array_equal(old.embed(windows[0]), before), "the old one runs on until it is replaced"
    del old
    assert np.array_equal(following.embed(windows[0]), after)


def test_a_loaded_block_does_not_keep_its_file_in_memory(small_bundle):
    info = small_bundle.manifest.variant("block-00", "onnx-fp32")
    data = small_bundle.block_bytes("block-00", "onnx-fp32")
    before = sys.getrefcount(data)
    block = load(data, *(cut.shape for cut in small_bundle.manifest.info.cuts[:2]), info)
    assert sys.getrefcount(data) == before
    block.run()


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        (("xnnpack", "cpu"), ["cpu"], ["cpu"]),
        (("xnnpack", "cpu"), ["xnnpack", "cpu"], ["xnnpack", "cpu"]),
        (("cpu", "coreml"), ["coreml", "cpu"], ["cpu"]),
        (("coreml", "cpu"), ["coreml", "cpu"], ["coreml", "cpu"]),
    ],
)
def test_the_first_provider_that_is_there_computes_and_the_processor_the_rest(wanted, available, expected, caplog):
    long = {"cpu": "CPUExecutionProvider", "xnnpack": "XnnpackExecutionProvider", "coreml": "CoreMLExecutionProvider"}
    with caplog.at_level("INFO"):
        chosen = choose_providers(RuntimeOptions(3, wanted), [long[name] for name in available])
    names = [name if isinstance(name, str) else name[0] for name in chosen]
    assert names == [long[name] for name in expected]
    assert len(caplog.records) == (expected[0] != wanted[0])
    if expected[0] == "xnnpack":
        assert chosen[0][1] == {"intra_op_num_threads": "3"}


def load(data, source_shape, result_shape, info):
    source, result = np.zeros(source_shape, np.float32), np.zeros(result_shape, np.float32)
    return open_backend("onnx", RuntimeOptions()).load(data, info, source, result, "bundle: block-00")


def test_a_block_of_other_shapes_than_the_manifest_says_is_refused(small_bundle):
    info = small_bundle.manifest.variant("block-00", "onnx-fp32")
    data = small_bundle.block_bytes("block-00", "onnx-fp32")
    shapes = [cut.shape for cut in small_bundle.manifest.info.cuts[:2]]
    load(data, *shapes, info)
    with pytest.raises(
        BackendError, match=r"bundle: block-00: the block declares shape \[1, 1024\], the manifest \[1, 9\]"
    ):
        load(data, (1, 9), shapes[1], info)
    with pytest.raises(BackendError, match="the block declares shape"):
        load(data, shapes[0], (1, 9), info)


def test_bytes_that_are_no_model_are_refused_in_one_line(small_bundle):
    info = small_bundle.manifest.variant("block-00", "onnx-fp32")
    for data in (b"", b"garbage", bytes(1000)):
        with pytest.raises(BackendError, match=r"^bundle: block-00: not a block that a device runs: [^\n]*$"):
            load(data, (1, 1024), (1, 8, 127), info)


def test_ends_that_a_block_does_not_have_are_refused(small_bundle):
    import msgspec

    info = small_bundle.manifest.variant("block-00", "onnx-fp32")
    data = small_bundle.block_bytes("block-00", "onnx-fp32")
    shapes = [cut.shape for cut in small_bundle.manifest.info.cuts[:2]]
    for field in ("input", "output"):
        with pytest.raises(BackendError, match="bundle: block-00"):
            load(data, *shapes, msgspec.structs.replace(info, **{field: "nothing"}))


def test_an_unknown_format_is_refused():
    with pytest.raises(BackendError, match="block format 'coreml'"):
        open_backend("coreml", RuntimeOptions())


def test_shapes_are_compared_whole():
    check_shape([1, 2], (1, 2), "x")
    for found in ([1], [1, 2, 3], ["batch", 2], [2, 1]):
        with pytest.raises(BackendError, match="x: the block declares"):
            check_shape(found, (1, 2), "x")


@pytest.mark.parametrize("variant", TOLERANCES)
def test_with_an_adaptation_it_is_the_encoder_with_those_norms(adaptable_bundle, tiny_encoder, windows, variant):
    changed, adaptation = adapt(tiny_encoder.graph.module, adaptable_bundle)
    prefix = Prefix(adaptable_bundle, variant, adaptation=adaptation)
    prefix.self_test()
    with torch.inference_mode():
        wanted = changed(torch.from_numpy(windows)).numpy()
    found = np.stack([prefix.embed(window) for window in windows])
    np.testing.assert_allclose(found, wanted, atol=TOLERANCES[variant])
    assert np.abs(in_torch(tiny_encoder, windows) - wanted).max() > TOLERANCES[variant]


def test_adapted_blocks_are_not_taken_over_and_others_are(adaptable_bundle, tiny_encoder, windows):
    _, adaptation = adapt(tiny_encoder.graph.module, adaptable_bundle)
    later = replace(adaptation, layers=adaptation.layers[1:])
    plain = Prefix(adaptable_bundle)
    plain.load_all()
    adapted = Prefix(adaptable_bundle, previous=plain, adaptation=later)
    assert adapted.missing == [1, 2], "the first block and the last are as compiled"
    adapted.load_all()
    assert Prefix(adaptable_bundle, previous=adapted).missing == [1, 2]


def test_an_adaptation_that_gives_another_embedding_fails_the_self_test(adaptable_bundle, tiny_encoder):
    _, adaptation = adapt(tiny_encoder.graph.module, adaptable_bundle)
    _, other = adapt(tiny_encoder.graph.module, adaptable_bundle, seed=1)
    with pytest.raises(SelfTestError, match="self-test embedding is off"):
        Prefix(adaptable_bundle, adaptation=replace(adaptation, layers=other.layers)).self_test()
