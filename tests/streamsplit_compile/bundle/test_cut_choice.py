from streamsplit_compile.bundle.cut_choice import choose_cuts, may_narrow
from streamsplit_compile.encoder.graph import Candidate


def test_automatic_cuts_of_resnet_are_ends_of_its_modules(resnet_encoder, resnet_bundle):
    names = [cut.name for cut in resnet_bundle.manifest.info.cuts]
    assert [candidate.name for candidate in choose_cuts(resnet_encoder, "auto")] == names
    assert names[0] == "waveform"
    assert names[-1] == "normalize"
    assert len(names) >= 4
    assert max(resnet_bundle.manifest.info.parity["onnx-fp32"].max_abs_error) < 1e-4


def test_bottlenecks_bring_early_cuts_that_ship_too_much_without_them(resnet_encoder, resnet_bundle):
    plain = [cut.name for cut in resnet_bundle.manifest.info.cuts]
    found = [candidate.name for candidate in choose_cuts(resnet_encoder, "auto", bottlenecks=True)]
    assert [name for name in found if name not in plain] == ["stem", "layer1.0"]
    assert set(plain) <= set(found)
    named = choose_cuts(resnet_encoder, "log_mel", bottlenecks=True)
    assert [candidate.name for candidate in named] == ["waveform", "log_mel", "normalize"], "nothing but what was named"


def test_what_a_bottleneck_can_narrow():
    def narrow(*shape):
        return may_narrow(Candidate(1, "node", "cut", shape, True))

    assert narrow(1, 64, 32, 25)
    assert narrow(1, 100, 768)
    assert not narrow(1, 128), "an embedding"
    assert not narrow(2, 64, 32, 25), "two tensors in one"
    assert not narrow(1, 2048, 8, 8), "patches of more values than are allowed"
