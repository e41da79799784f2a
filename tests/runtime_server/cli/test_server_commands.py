"""`ssc server run` before anything is served."""

from click.testing import CliRunner

from streamsplit_compile.cli.main import main


def test_the_options_that_the_bundle_was_compiled_with_are_asked_for(small_bundle, tiny_file, tmp_path):
    command = ["server", "run", str(tiny_file), str(small_bundle.path), "--state", str(tmp_path / "server")]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 2
    assert "the bundle was compiled with --factory toys:Tiny; give the same here" in found.output
    assert not (tmp_path / "server").exists()
