"""Frames that a completer reads, and those of adapted devices that it leaves alone."""

import numpy as np
import pytest
import torch
from toys import Tiny

from runtime_edge.formats.model_id import model_number
from runtime_edge.formats.wire import decode_frame
from runtime_server.labels.completer import Completer


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_an_adapted_devices_activations_are_left_alone_and_its_audio_is_read(small_bundle, sounds, frame_of, cut):
    completer, own = Completer({1: small_bundle}), model_number(small_bundle.manifest)
    ((header, payload),) = decode_frame(frame_of(sounds[0], 0, cut))
    with torch.no_grad():
        expected = Tiny()(torch.from_numpy(sounds[:1]))[0].numpy()
    for model, read in ((0, True), (own, True), (own ^ 1, cut == 0)):
        completed = completer.complete(header._replace(model=model), payload)
        assert (completed is not None) == read
        if completed is not None:
            np.testing.assert_allclose(completed.embedding, expected, atol=1e-4)
