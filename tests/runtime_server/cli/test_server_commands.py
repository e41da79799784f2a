"""`ssc server run` before anything is served."""

from dataclasses import replace

import pytest

from runtime_edge.errors import UsageError
from runtime_server.cli import server_commands
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
    assert "--training trains them" in capsys.readouterr().err
    assert configured(tiny_encoder, "--training").training
    fresh = replace(tiny_encoder, untrained=True)
    assert configured(fresh).training
    assert not configured(fresh, "--no-training").training
    assert "--training trains them" not in capsys.readouterr().err


def test_six_hours_at_least_lie_between_releases_unless_another_time_is_given(configured, tiny_encoder):
    assert configured(tiny_encoder).release.least_s == 6 * 3600
    assert configured(tiny_encoder, "--release-least-s", "60").release.least_s == 60
