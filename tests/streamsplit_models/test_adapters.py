import importlib.util
import subprocess
import sys

import pytest
import torch

from streamsplit_models.adapters import ast, clap, wav2vec2

pytestmark = pytest.mark.integration

installed = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not installed, reason="transformers is not installed")
FACTORIES = {ast: 192, clap: 128, wav2vec2: 192}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.skipif(installed, reason="transformers is installed")
@pytest.mark.parametrize("factory", FACTORIES)
def test_without_the_library_the_error_names_it(factory):
    with pytest.raises(ImportError, match="transformers"):
        factory()


@needs_transformers
def test_building_one_says_nothing():
    code = "from streamsplit_models.adapters import ast; ast(num_hidden_layers=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == done.stderr == ""


@needs_transformers
@pytest.mark.parametrize(("factory", "embedding_dim"), FACTORIES.items())
def test_contract(factory, embedding_dim, check_encoder):
    check_encoder(factory(), embedding_dim)


@needs_transformers
@pytest.mark.parametrize("factory", FACTORIES)
def test_fresh_encoder_depends_on_its_seed_alone(factory):
    state = torch.get_rng_state()
    first, again, other = factory(seed=3), factory(seed=3), factory(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    differs = [not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)]
    assert any(differs)


# Kaldi's 128 bands over 257 bins have an empty one; AST was trained with it.
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")
@pytest.mark.parametrize("window_seconds", [1.0, 3.0])
def test_ast_from_a_directory_is_the_library_s(transformers, tmp_path, sounds, window_seconds):
    config = transformers.ASTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, max_length=200
    )
    extractor = transformers.ASTFeatureExtractor(max_length=200, mean=-4.0, std=3.0)
    model = transformers.ASTModel(config).eval()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    waveform = sounds(4, 16_000, round(16_000 * window_seconds))

    encoder = ast(str(tmp_path), window_seconds=window_seconds)

    inputs = extractor(list(waveform.numpy()), sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        torch.testing.assert_close(encoder.frames(encoder.log_mel(waveform)), inputs, atol=2e-3, rtol=0)
        expected = unit(model(inputs).pooler_output)
        torch.testing.assert_close(encoder(waveform), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_clap_from_a_directory_is_the_library_s(transformers, tmp_path, sounds, fused):
    audio = {
        "spec_size": 128,
        "depths": [1, 1],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "aff_block_r": 2,
    }
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16,
            "vocab_size": 50}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ClapModel(
        transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=24)
    ).eval()
    truncation = "fusion" if fused else "rand_trunc"
    extractor = transformers.ClapFeatureExtractor(max_length_s=2, frequency_min=50, truncation=truncation)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    waveform = sounds(2, 48_000, 40_000)

    encoder = clap(str(tmp_path), window_seconds=40_000 / 48_000)

    inputs = extractor(list(waveform.numpy()), sampling_rate=48_000, return_tensors="pt")
    image = encoder.log_mel(encoder.repeat(waveform)).transpose(2, 3)
    torch.testing.assert_close(image[:, 0], inputs["input_features"][:, 0], atol=0.05, rtol=0)
    with torch.no_grad():
        inputs["is_longer"] = torch.zeros(2, 1, dtype=torch.bool)
        audio_output = model.audio_model(**inputs)
        expected = unit(model.audio_projection(audio_output.pooler_output))
        torch.testing.assert_close(encoder(waveform), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalised", [False, True])
def test_wav2vec2_from_a_directory_is_the_library_s(transformers, tmp_path, sounds, normalised):
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised)
    model = transformers.Wav2Vec2Model(config).eval()
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    waveform = sounds(3, 16_000, 8_000)

    encoder = wav2vec2(str(tmp_path), window_seconds=0.5)

    inputs = extractor(list(waveform.numpy()), sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        torch.testing.assert_close(encoder.standardize(waveform), inputs, atol=1e-4, rtol=0)
        expected = unit(model(inputs).last_hidden_state.mean(dim=1))
        torch.testing.assert_close(encoder(waveform), expected, atol=1e-4, rtol=0)


@needs_transformers
@pytest.mark.parametrize(
    ("factory", "fields", "named"),
    [
        (ast, {"colour": "red"}, "colour"),
        (wav2vec2, {"hidden_size": 100, "num_attention_heads": 3}, "Wav2Vec2Config"),
        (wav2vec2, {"hop_seconds": -1}, "hop_seconds"),
        (clap, {"window_seconds": 5}, "window_seconds"),
        (ast, {"directory": "nowhere"}, "nowhere/config.json"),
        (ast, {"directory": "nowhere", "hidden_size": 8}, "hidden_size"),
    ],
)
def test_a_wrong_argument_is_named(factory, fields, named):
    with pytest.raises(ValueError, match=named) as error:
        factory(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "not JSON"), ("[]", "JSON object"), ('{"std": "wide"}', "std"), ('{"std": 0}', "std")],
)
def test_a_wrong_preprocessor_file_is_named(tmp_path, text, named):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=named):
        ast(str(tmp_path))


def test_a_directory_without_all_weights_is_refused(transformers, tmp_path):
    from safetensors.numpy import load_file, save_file

    ast(hidden_size=12, num_hidden_layers=1, intermediate_size=8).model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(max(weights))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no weights for"):
        ast(str(tmp_path))
