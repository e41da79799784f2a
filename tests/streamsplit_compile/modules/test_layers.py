import pytest
from torch import nn

from runtime_edge.errors import UsageError
from streamsplit_compile.modules.layers import channels_in, groups_of, layers_of


def test_groups_of_eight_and_what_is_left(encoder):
    first, second, third = layers_of(encoder)
    assert (first.name, second.name, third.name) == ("features.1", "features.2", "features.4")
    assert [len(group) for group in groups_of(first)] == [8] * 5
    assert [one.skippable for one in (first, second, third)] == [True, False, True]
    encoder.keep_channels({"features.2": range(20)})
    narrow = layers_of(encoder)[1]
    assert [len(group) for group in groups_of(narrow)] == [8, 8, 4]
    assert channels_in(narrow, [2, 0]) == [*range(8), *range(16, 20)]


def test_an_encoder_without_such_channels_is_refused_by_name():
    with pytest.raises(UsageError, match=r"own\.pt: no channels that can be left out"):
        layers_of(nn.Linear(2, 2), "own.pt")
