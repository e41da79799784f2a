import torch
from torch.nn import functional

from streamsplit_compile.modules.imitation import imitate
from streamsplit_compile.modules.observation import observe
from streamsplit_compile.modules.ranking import embeddings_of
from streamsplit_compile.modules.slicing import slice_encoder


def test_a_few_steps_bring_a_slice_nearer_and_repeat_themselves(encoder, windows):
    kept = {layer.name: list(range(0, layer.channels, 2)) for layer in encoder.inner_layers()}
    observed, whole = observe(encoder, windows), embeddings_of(encoder, windows)
    made, steps = [], []
    for count in (0, 12, 12):
        small = slice_encoder(encoder, kept, observed)
        imitate(small, windows, whole, count, 5, lambda done, total: steps.append((done, total)))
        made.append(embeddings_of(small, windows))
    before, after, again = (1 - functional.cosine_similarity(found, whole).mean() for found in made)
    assert after < 0.9 * before
    torch.testing.assert_close(after, again, rtol=0, atol=0)
    assert steps == 2 * [(step, 12) for step in range(12)]
