"""The extra `transformers`: encoders of that library."""

import pytest

EXTRAS = "transformers"
BRINGS = {"transformers", "compile", "edge", "audio"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_an_encoder_of_that_library_is_made_compiled_and_verified(terminal):
    environment, here = terminal.environment, terminal.directory
    config = '{"num_hidden_layers": 1}'
    terminal.types(
        "ssc encoder new ast -o ast.pt --encoder-config '{\"num_hidden_layers\": 4}'",
        swaps={'{"num_hidden_layers": 4}': config},
    )
    environment.ssc("compile", here / "ast.pt", "--targets", "rpi4", "--cuts", "2", "-o", here / "bundle")
    environment.ssc("verify", here / "bundle", "--encoder", here / "ast.pt")
    assert (here / "bundle" / "manifest.json").exists()
