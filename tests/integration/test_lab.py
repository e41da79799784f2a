"""The lab with everything real: namespaces, broker, server, a paced device on a shaped link."""

import asyncio
import os
import subprocess

import harness
import numpy as np
import pytest

from runtime_server.harness.network import remove_stale, why_not
from runtime_server.lab.accuracy import Answers
from runtime_server.lab.figures import answered_by, figures
from runtime_server.lab.policy_arms import all_policies, chosen_policies
from runtime_server.lab.scenarios import SCENARIOS, ScenarioStep
from runtime_server.lab.session import Lab
from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
from streamsplit_compile.cost.radios import load_radio
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.encoder.encoders import load_encoder

SECONDS = 3.0


@pytest.fixture(params=["namespaces", "relay"])
def namespaces(request):
    if request.param == "namespaces" and (reason := why_not()):
        pytest.skip(reason)
    return request.param == "namespaces"


def test_a_frame_takes_its_time_on_a_thin_link(toy, toy_bundle, tmp_path, namespaces):
    """Opus of half a second at 16 kbit/s, 1.1 kB, takes 180 ms at 50 kbit/s; a bucket alone lets it pass at once."""
    audio = harness.write_wav(tmp_path / "a.wav", 30.0, seed=5)
    (opus,) = chosen_policies(all_policies(toy_bundle, "rpi4", SCENARIOS["lora-gateway"], 0), ["opus-16"])

    async def play():
        async with Lab(tmp_path, toy_bundle, "rpi4", namespaces) as lab:
            await lab.serve(toy / "encoder.pt")
            return await lab.play(opus, audio, [ScenarioStep(0.0, 0.05, 10.0, 0.0, 0.0)], 4.0)

    results = [heard.result for heard in asyncio.run(play()).results]
    finished = [result for result in results if result.finished == "server"]
    assert finished
    least_ms = min(result.network_ms - result.frame_bytes * 8 / 50 for result in finished)
    assert least_ms > 0


def test_an_exit_answers_first_and_both_answers_are_those_of_the_library(toy, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    harness.write_wav(recordings / "room.wav", 60.0, seed=40)
    options = CompileOptions([load_target("rpi4")], cuts="log_mel,one", calibrate=recordings)
    bundle = compile_encoder(load_encoder(toy / "encoder.pt"), options, tmp_path / "bundle")
    cut, width = bundle.manifest.info.bottlenecks[-1].cut, bundle.manifest.info.bottlenecks[-1].widths[-1].width
    policies = all_policies(bundle, "rpi4", SCENARIOS["lte"], 0)
    (policy,) = chosen_policies(policies, [f"cut:{cut}/{width}+exit"])
    audio = harness.write_wav(tmp_path / "a.wav", 30.0, seed=5)
    steps = [ScenarioStep(0.0, 1.0, 100.0, 0.0, 0.0)]

    async def play():
        async with Lab(tmp_path, bundle, "rpi4", namespaces=False) as lab:
            pace = lab.pace()
            await lab.serve(toy / "encoder.pt")
            return pace, await lab.play(policy, audio, steps, SECONDS)

    pace, recording = asyncio.run(play())
    assert (pace.exit_ms.keys(), pace.bottleneck_ms.keys()) == ({"log_mel", "one"}, {"log_mel", "one"})
    assert recording.encode_ms > 0  # of latents, too
    windows = harness.windows_of(audio)
    by_name = Answers(bundle, "rpi4").of({"local", *policy.answers}, windows)
    found = figures(
        recording, encoder="toy", scenario="lte", policy=policy.name, repeat=0, bundle=bundle, target="rpi4",
        steps=steps, radio=load_radio("lte"), reference=by_name["local"], measured_mj={},
    )  # fmt: skip
    late = [heard for heard in recording.results if heard.result.finished == "exit"]
    assert len(late) < len(recording.results) == len(recording.firsts)
    assert set(found.first_answers) == {policy.answers[0]}
    assert set(found.final_answers) <= set(policy.answers)
    assert set(found.cuts) == {f"{cut}/{width}"}
    for heard in [*recording.results, *recording.firsts.values()]:
        expected = by_name[answered_by(heard.result)][heard.result.window]
        assert np.abs(np.array(heard.result.embedding) - expected).max() < 1e-3
    # The exit waits for no link, and is nearer to the window's end by at least the round trip.
    assert found.first_latency_ms["p50"] + 100.0 < found.latency_ms["p50"]
    for heard in recording.firsts.values():
        assert heard.result.device_ms > pace.exit_ms[cut] + pace.bottleneck_ms[cut]
    assert found.fidelity != found.fidelity_first


def test_a_device_is_measured_on_a_shaped_link(toy, toy_bundle, toy_model, tmp_path, namespaces):
    audio = harness.write_wav(tmp_path / "a.wav", 30.0, seed=5)
    policies = all_policies(toy_bundle, "rpi4", SCENARIOS["lte"], 0)
    (flac,) = chosen_policies(policies, ["flac"])
    steps = [ScenarioStep(0.0, 1.0, 60.0, 0.0, 0.5)]

    async def play():
        async with Lab(tmp_path, toy_bundle, "rpi4", namespaces) as lab:
            await lab.serve(toy / "encoder.pt")
            return await lab.play(flac, audio, steps, SECONDS)

    recording = asyncio.run(play())
    windows = harness.windows_of(audio)
    import torch

    with torch.no_grad():
        reference = toy_model(torch.from_numpy(windows)).numpy()
    found = figures(
        recording, encoder="toy", scenario="lte", policy="flac", repeat=0, bundle=toy_bundle, target="rpi4",
        steps=steps, radio=load_radio("lte"), reference=np.asarray(reference), measured_mj={},
    )  # fmt: skip
    assert found.cuts == {"waveform": found.windows}
    assert found.windows > 0.5 * SECONDS / harness.HOP_S
    assert found.fidelity > 0.999
    assert found.latency_ms["p50"] > 60.0  # the round trip alone
    shipped = sum(found.frame_bytes) * 3600 / recording.seconds / 1e6
    assert found.up_mb_per_hour > shipped  # with what goes around the frames
    # LTE's tail outlasts a hop, so the radio is awake all the time: more than the tail's power over a window.
    window_mj = recording.seconds * 1e3 / found.windows
    assert 0.95 * (1.06 - 0.02) * window_mj < found.energy_mj["radio"] < 1.288 * window_mj + 3.6 * 20
    assert found.energy_mj["idle"] == pytest.approx((2.7 + 0.0201) * window_mj, rel=0.01)
    assert 0 < found.energy_mj["compute"] < 20  # FLAC of half a second, on one core, four times as slow as here
    assert 0 < found.queued_share < 1  # the load wants half of the same processor
    if namespaces:
        remove_stale()
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert f"ssc-lab-{os.getpid()}-" not in left  # another run's may be there
