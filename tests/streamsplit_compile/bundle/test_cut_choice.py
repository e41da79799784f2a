from streamsplit_compile.bundle.cut_choice import choose_cuts


def test_automatic_cuts_of_resnet_are_ends_of_its_modules(resnet_encoder, resnet_bundle):
    names = [cut.name for cut in resnet_bundle.manifest.info.cuts]
    assert [candidate.name for candidate in choose_cuts(resnet_encoder, "auto")] == names
    assert names[0] == "waveform"
    assert names[-1] == "normalize"
    assert len(names) >= 4
    assert max(resnet_bundle.manifest.info.parity["onnx-fp32"].max_abs_error) < 1e-4
