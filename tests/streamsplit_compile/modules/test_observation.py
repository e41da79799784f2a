import torch

from streamsplit_compile.modules.observation import observe


def inputs_of(encoder, name, windows):
    found = []
    hook = encoder.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: found.append(inputs[0]))
    with torch.no_grad():
        encoder(windows)
    hook.remove()
    return found[0]


def test_means_and_covariances_are_those_of_what_a_reader_reads(encoder, windows):
    observed = observe(encoder, windows)
    for name in ("features.1.block.3.0", "features.4.conv2"):
        rows = inputs_of(encoder, name, windows).transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(observed.means[name], rows.mean(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(observed.covariances[name], torch.cov(rows, correction=0), rtol=1e-3, atol=1e-5)


def test_the_gram_says_how_far_the_embedding_moves_for_a_small_change(encoder, windows):
    layer, step = encoder.inner_layers()[0], 1e-3
    observed = observe(encoder, windows, torch.eye(encoder.embedding_dim), seed=3)
    moved = torch.zeros(layer.channels)
    means = {reader: observed.means[reader].float() for reader in layer.readers}
    with torch.no_grad():
        whole = encoder(windows)
    for channel in range(0, layer.channels, 7):

        def towards_mean(_module, inputs, reader, channel=channel):
            changed = inputs[0].clone()
            changed[:, channel] += step * (means[reader][channel] - changed[:, channel])
            return (changed,)

        hooks = [
            encoder.get_submodule(reader).register_forward_pre_hook(
                lambda module, inputs, reader=reader: towards_mean(module, inputs, reader)
            )
            for reader in layer.readers
        ]
        with torch.no_grad():
            moved[channel] = ((encoder(windows) - whole) / step).square().sum(1).mean()
        for hook in hooks:
            hook.remove()
    checked = moved > 0
    found = observed.grams[layer.name].diagonal().float()
    # One random direction for each window: the sum is unbiased, single channels are noisy.
    assert 0.6 < found[checked].sum() / moved[checked].sum() < 1.6
    assert torch.corrcoef(torch.stack([found[checked], moved[checked]]))[0, 1] > 0.7


def test_the_same_seed_gives_the_same_and_the_encoder_stays_as_it_was(encoder, windows):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    first, again = observe(encoder, windows[:8], seed=1), observe(encoder, windows[:8], seed=1)
    torch.testing.assert_close(first.grams, again.grams, rtol=0, atol=0)
    torch.testing.assert_close(dict(encoder.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())
