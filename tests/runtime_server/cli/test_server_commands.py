"""`ssc server run` before anything is served."""

import pytest

from streamsplit_compile.cli.main import main

pytestmark = pytest.mark.integration


def test_the_options_that_the_bundle_was_compiled_with_are_asked_for(small_bundle, tiny_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["server", "run", str(tiny_file), str(small_bundle.path), "--state", str(tmp_path / "server")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the bundle was compiled with --factory toys:Tiny; give the same here" in line
    assert not (tmp_path / "server").exists()
