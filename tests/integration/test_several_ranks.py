"""A server of two ranks, three brokers and a small fleet, while one after the other is killed."""

import asyncio

import pytest

from tools.fleet import Fleet, FleetConfig, FleetRecordings

pytestmark = pytest.mark.slow


def test_a_fleet_loses_nothing_while_ranks_and_brokers_are_killed(toy, toy_bundle, tmp_path):
    encoder = toy / "encoder.pt"
    recorded = FleetRecordings(toy_bundle, encoder, None)
    releases = ("--release-steps", 20, "--release-least-s", 0, "--release-tolerance", 1)
    config = FleetConfig(
        devices=20,
        seconds=24.0,
        period_s=0.5,
        kill_every_s=7.0,
        seed=4,  # rank 1, broker 0, rank 0
        server_options=("--training", "--train-share", 0.2, *releases),
    )
    fleet = Fleet(tmp_path, encoder, toy / "bundle", recorded, config)
    report = asyncio.run(fleet.run())
    log = fleet.server.log.read_text()
    last_life = log[log.rindex("serving generation") :]  # a rank whose neighbour was killed may end in order, too

    assert report.kills == {"rank 1": 1, "broker 0": 1, "rank 0": 1}
    assert report.captured >= 20 * 24
    assert report.lost == report.duplicated == report.wrong_replies == 0
    assert report.captured == report.acked == report.counted
    assert report.told_apart > 0.9, "an answer to another window would not be noticed"
    assert set(report.replies) == {"ok"}
    assert report.replies["ok"] >= 0.6 * report.captured
    assert report.training_steps > 0
    assert last_life.count("stopped after") == 2, "SIGTERM to torchrun did not end both ranks in order"
    assert "the weights to train are not" not in log
