"""`ssc server run` before anything is served."""

from dataclasses import replace

import pytest

from runtime_edge.errors import UsageError
from runtime_server.cli import server_commands
from runtime_server.releases.release_gate import first_model
from runtime_server.training.checkpoint import Checkpoints
from runtime_server.training.losses import LOSSES
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.cli.main import main

pytestmark = pytest.mark.integration


def test_the_options_that_the_bundle_was_compiled_with_are_asked_for(small_bundle, tiny_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["server", "run", str(tiny_file), str(small_bundle.path), "--state", str(tmp_path / "server")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bundle was compiled with --factory toys:Tiny; give the same here" in line
    assert not (tmp_path / "server").exists()


@pytest.fixture
def configured(monkeypatch, small_bundle, tmp_path):
    """`configured(encoder, *options)` is the ServerConfig that `ssc server run` makes; nothing is served."""
    monkeypatch.chdir(tmp_path)

    def configure(encoder, *options):
        made = []

        def server(loaded, config, ranks):
            made.append(config)
            raise UsageError("enough")

        monkeypatch.setattr(server_commands, "Server", server)
        monkeypatch.setattr(server_commands, "load_encoder", lambda *_: encoder)
        with pytest.raises(SystemExit):
            main(["server", "run", "encoder.pt", str(small_bundle.path), *options])
        return made[0]

    return configure


def test_weights_that_know_something_are_trained_only_when_asked_for(configured, tiny_encoder, capsys):
    assert not tiny_encoder.untrained
    assert not configured(tiny_encoder).training
    assert "with --training the server trains them" in capsys.readouterr().err
    assert configured(tiny_encoder, "--training").training
    fresh = replace(tiny_encoder, untrained=True)
    assert configured(fresh).training
    assert not configured(fresh, "--no-training").training
    assert "with --training the server trains them" not in capsys.readouterr().err


def test_six_hours_at_least_lie_between_releases_unless_another_time_is_given(configured, tiny_encoder):
    assert configured(tiny_encoder).release.least_s == 6 * 3600
    assert configured(tiny_encoder, "--release-least-s", "60").release.least_s == 60


@pytest.fixture
def run(small_bundle, tiny_file, tmp_path, capsys):
    """`run(*options)`: what the command says when it ends with an error."""

    def call(*options):
        given = ["server", "run", str(tiny_file), str(small_bundle.path), "--factory", "toys:Tiny"]
        with pytest.raises(SystemExit) as caught:
            main([*given, "--state", str(tmp_path / "server"), *options])
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call


@pytest.fixture
def servers(monkeypatch):
    """The settings of servers that are not started."""
    made = []

    class NoServer:
        def __init__(self, encoder, config, ranks):
            made.append(config)
            raise UsageError("not started")

    monkeypatch.setattr("runtime_server.cli.server_commands.Server", NoServer)
    return made


def test_training_is_as_its_options_say(run, servers):
    run()
    others = ("--batch", "16", "--learning-rate", "0.01", "--seed", "3")
    run("--objective", "barlow-twins", "--loss", "hybrid", "--spread", "kl", *others)
    run("--loss", "hybrid")
    run("--loss", "hybrid", "--spread", "none")
    usual, chosen, hybrid, without = (config.train for config in servers)
    assert usual == TrainConfig()
    expected = replace(usual, objective="barlow-twins", batch=16, learning_rate=0.01, seed=3)
    assert (usual.loss, hybrid.loss) == (LOSSES["task"], LOSSES["hybrid"])
    assert chosen == replace(expected, loss=replace(hybrid.loss, spread="kl"))
    assert without.loss == replace(hybrid.loss, spread=None)


def test_a_spread_term_is_refused_where_the_loss_has_none(run, servers):
    assert run("--spread", "kl").endswith("--spread kl: only the hybrid loss has such a term; give --loss hybrid, too")
    assert not servers


def test_what_counts_the_energy_is_chosen(run, servers):
    run()
    run("--energy", "rapl", "--idle-watts", "12.5")
    assert [(config.energy, config.idle_watts) for config in servers] == [("auto", None), ("rapl", 12.5)]


@pytest.mark.parametrize(("option", "known"), [("--objective", "moco"), ("--spread", "mmd")])
def test_an_unknown_term_is_told_what_there_is(run, option, known):
    line = run(option, "byol")
    assert option in line
    assert known in line


def test_a_server_that_trained_with_another_objective_says_what_to_give(run, tiny_encoder, generations, tmp_path):
    path = tmp_path / "server" / "trainer" / "checkpoint.pt"
    model = first_model(generations.graph, generations.newest)
    Checkpoints(path, tiny_encoder.id).save(Trainer(model, TrainConfig(objective="moco"), tiny_encoder.embedding_dim))
    line = run("--broker", "nats://127.0.0.1:9", "--training", "--objective", "simclr")
    assert f"{path}: was trained with --objective moco, not simclr; give --objective moco, or remove" in line
    assert path.exists()
