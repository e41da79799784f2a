import torch
from torch.nn import functional

from streamsplit_compile.modules.observation import observe
from streamsplit_compile.modules.ranking import embeddings_of
from streamsplit_compile.modules.slicing import recalibrate, slice_encoder


def away(small, encoder, windows):
    return float(1 - functional.cosine_similarity(small(windows), encoder(windows)).mean().detach())


def half(encoder):
    return {layer.name: list(range(0, layer.channels, 2)) for layer in encoder.inner_layers()}


def test_channels_that_others_repeat_are_replaced_without_loss(encoder, windows):
    """Channel 1 becomes three times channel 0, in what is read; leaving it out then loses nothing."""
    block = encoder.features[4]
    with torch.no_grad():
        for tensor in (block.conv1.weight, block.bn1.running_mean, block.bn1.weight, block.bn1.bias):
            tensor[1] = tensor[0]
        block.bn1.running_var[1] = block.bn1.running_var[0]
        block.bn1.weight[1] *= 3
        block.bn1.bias[1] *= 3
    kept = {"features.4": [0, *range(2, 16)]}
    observed = observe(encoder, windows)
    plain, replaced = slice_encoder(encoder, kept), slice_encoder(encoder, kept, observed)
    assert away(replaced, encoder, windows) < 1e-4 < away(plain, encoder, windows)


def test_what_stays_stands_in_for_what_is_left_out(encoder, windows):
    kept = {layer.name: [c for c in range(layer.channels) if c % 4] for layer in encoder.inner_layers()}
    seen, unseen = windows[:32], windows[32:]
    plain = slice_encoder(encoder, kept)
    replaced = slice_encoder(encoder, kept, observe(encoder, seen))
    assert away(replaced, encoder, unseen) < 0.8 * away(plain, encoder, unseen)


def test_statistics_are_those_of_the_windows_and_momenta_stay(encoder, windows):
    small = slice_encoder(encoder, half(encoder))
    windows = windows[:32]  # one batch: then the average over batches is that over windows
    recalibrate(small, windows)
    norm, found = small.features[0][1], []
    hook = norm.register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
    embeddings_of(small, windows)
    hook.remove()
    torch.testing.assert_close(norm.running_mean, torch.cat(found).mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert norm.momentum == encoder.features[0][1].momentum
    assert not small.training
    assert not norm.training
