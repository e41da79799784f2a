"""Settings of a server: each one arrives in its part of the configuration."""

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from runtime_edge.errors import UsageError
from runtime_edge.settings import as_toml, load, read
from runtime_server.broker.access import SecurityConfig
from runtime_server.serving.server_config import ServerConfig
from runtime_server.serving.server_settings import ServerSettings
from runtime_server.training.losses import LOSSES
from runtime_server.training.losses.hybrid import SPREAD_TERMS
from runtime_server.training.losses.objectives import OBJECTIVES
from runtime_server.training.trainer import TrainConfig

OTHERS = {
    "state": Path("x"), "broker": "nats://x:1", "replicas": 3, "host": "::1", "port": 5000, "mqtt_port": 5001,
    "calibrate": Path("c"), "training": True, "batch": 64, "objective": "moco", "loss": "hybrid", "spread": "kl",
    "learning_rate": 0.5, "train_share": 0.1, "checkpoint_steps": 7, "replay_mb": 3, "meter": "rapl",
    "idle_watts": 2.5, "release_steps": 9, "release_s": 8.0, "release_least_s": 7.0, "release_tolerance": 0.5,
    "bottleneck_steps": 20,
    "probe": Path("p"), "canary_share": 0.7, "canary_from": 4, "healthy_s": 3.0, "update_mb_per_day": 2.0,
    "tensorboard": Path("t"), "web": "8081", "threads": 2, "precision": "bfloat16", "seed": 6, "auth": True,
    "credentials": Path("n"), "tls_cert": Path("a"), "tls_key": Path("k"), "tls_ca": Path("ca"), "max_rate": 11.0,
    "metrics_port": 9465, "key": Path("s"), "larger": Path("l"), "larger_head": Path("h"),
    "adapt": "tent", "adapt_scope": "alike", "adapt_least_s": 5.0, "adapt_devices": 3, "adapt_statistics": "blended",
}  # fmt: skip


def flat(config):
    """All values of a configuration and its parts, by where they are."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = flat(value) if dataclasses.is_dataclass(value) else {"": value}
        found |= {f"{field.name}.{name}": one for name, one in inner.items()}
    return found


def test_without_any_setting_a_server_is_as_its_configuration_says():
    found = flat(ServerSettings().config(Path("bundle"), untrained=True))
    assert found == flat(ServerConfig(bundle=Path("bundle"), state=Path("ssc-server")))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_each_setting_changes_what_it_is_about(name):
    usual = ServerSettings(loss="hybrid") if name == "spread" else ServerSettings()
    changed = dataclasses.replace(usual, **{name: OTHERS[name]})
    before, after = (flat(one.config(Path("bundle"), untrained=False)) for one in (usual, changed))
    different = {key for key in before if before[key] != after[key]}
    assert different, "a setting that nothing takes"
    assert {after[key] for key in different if key.split(".")[-2] == name} <= {OTHERS[name]}
    if name != "loss":
        assert len(different) == 1


def test_every_setting_was_tried():
    assert OTHERS.keys() == {field.name for field in dataclasses.fields(ServerSettings)}


def test_the_choices_are_those_there_are():
    hints = get_type_hints(ServerSettings)
    assert get_args(hints["objective"]) == tuple(OBJECTIVES)
    assert get_args(hints["loss"]) == tuple(LOSSES)
    assert get_args(get_args(hints["spread"])[0]) == (*SPREAD_TERMS, "none")


def test_training_is_by_the_encoder_unless_it_is_said():
    assert ServerSettings().config(Path("b"), untrained=True).training
    assert not ServerSettings().config(Path("b"), untrained=False).training
    assert not ServerSettings(training=False).config(Path("b"), untrained=True).training
    assert ServerSettings().config(Path("b"), untrained=True).train == TrainConfig()


def test_a_file_has_them_too_and_the_earlier_names(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text('state = "here"\nenergy = "rapl"\nhealth_port = 9\ntraining = false\nauth = true\n')
    config = load(ServerSettings, path, {"metrics_port": 10}).config(Path("b"), untrained=True)
    assert (config.state, config.energy, config.health_port, config.training) == (Path("here"), "rapl", 10, False)
    assert config.security == SecurityConfig(auth=True)
    path.write_text(as_toml(ServerSettings, read(ServerSettings, path)))
    assert load(ServerSettings, path, {}).meter == "rapl"
    path.write_text("learnign_rate = 1")
    with pytest.raises(UsageError, match=r"server.toml: 'learnign_rate': no such setting, did you mean learning_rate"):
        load(ServerSettings, path, {})


def test_every_line_of_the_printed_file_is_a_setting(tmp_path):
    path = tmp_path / "server.toml"
    lines = [line.removeprefix("# ") for line in as_toml(ServerSettings).splitlines()]
    path.write_text("\n".join(line for line in lines if line.split(" = ")[0] in OTHERS))
    assert len(read(ServerSettings, path)) == len(OTHERS)
