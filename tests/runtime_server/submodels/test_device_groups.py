import numpy as np

from runtime_server.submodels.device_groups import group_devices


def heard(*middles):
    random = np.random.default_rng(0)
    return np.concatenate([np.array(middle) + 0.01 * random.standard_normal((4, 3)) for middle in middles])


def test_devices_that_hear_alike_share_a_group():
    rows = heard([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])
    owners = group_devices(rows, 3).nearest(rows).reshape(3, 4)
    assert (owners == owners[:, :1]).all()
    assert len(set(owners[:, 0])) == 3


def test_a_group_of_its_own_for_the_nearest_middle_and_no_more_groups_than_asked_for():
    rows = heard([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])
    groups = group_devices(rows, 2)
    assert len(groups.middles) == 2
    far = np.square(rows[:, None] - groups.middles).sum(2)
    assert groups.nearest(rows).tolist() == far.argmin(1).tolist()


def test_one_device_or_one_group_is_the_mean():
    rows = heard([1.0, 0, 0])
    np.testing.assert_allclose(group_devices(rows, 1).middles, rows.mean(0, keepdims=True))
    np.testing.assert_allclose(group_devices(rows[:1], 4).middles, rows[:1])
