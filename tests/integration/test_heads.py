"""Heads on a running system: from what devices sent, signed, swapped alone, and refused when they do not fit."""

import asyncio
import csv
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import harness
import msgspec
import numpy as np
import pytest
import reading
import sounds
from msgspec.structs import replace

import runtime_edge
from runtime_edge.errors import UsageError
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.records.envelope import seal
from runtime_edge.formats.records.head import Head, read_head
from runtime_server.labels.head_clips import HeadClipsFolder
from runtime_server.labels.labelled import LabelledEvent, of_events
from runtime_server.state.server_state import head_clips_path
from streamsplit_compile.bundle.compiler import recompile

WINDOW_S = harness.WINDOW / harness.SAMPLE_RATE


def constant(info, label, **changes):
    """A head that gives every window one label."""
    width = info.encoder.embedding_dim
    head = Head(
        encoder=info.encoder.id, embedding_dim=width, generations=(1, 1), labels=(label, "other"), scores_by="softmax",
        thresholds=(0.5, 0.5), validation=None, created_by="test", bias=np.array([9, 0], "<f4").tobytes(),
        weights=bytes(4 * 2 * width), model=None, temperature=1.0,
    )  # fmt: skip
    return replace(head, **changes)


async def put_heads(hub, name, info, signing_key):
    """What a device answers to two heads that fit, and then to seven that must not be used."""
    bucket, events, key = await hub.stream.key_value(subjects.HEADS), asyncio.Queue(), subjects.table_key("rpi4", name)
    numbers = itertools.count(1)

    def sealed(head, secret=signing_key):
        return seal("head", key, next(numbers), head.to_json(), secret)

    async def on_event(message):
        await events.put(msgspec.json.decode(message.data))

    await hub.client.subscribe(subjects.events(name), cb=on_event)

    async def answer_to(record):
        """The next event that is another than the last head's labels."""
        await bucket.put(key, record)
        while True:
            event = await asyncio.wait_for(events.get(), 15.0)
            if event["event"] == "head_refused":
                return event["reason"]
            if event["event"] == "result" and event["detected"] != last:
                return event["detected"]

    last = []
    said = {"first": await answer_to(sealed(constant(info, "first")))}
    last = ["first"]
    said["second"] = await answer_to(second := sealed(constant(info, "second")))
    last = ["second"]
    wide = constant(info, "wide", embedding_dim=17, weights=bytes(4 * 2 * 17))
    for what, record in {
        "unsigned": sealed(constant(info, "x"), None),
        "forged": sealed(constant(info, "x"), minisign.generate_key()),
        "garbage": b"{",
        "foreign": sealed(constant(info, "x", encoder="resnet18")),
        "wide": sealed(wide),
        "changed": sealed(constant(info, "x")).replace(b'\\"number\\":', b'\\"number\\":1'),
        "old": second,
    }.items():
        said[what] = await answer_to(record)
    return said


def test_heads_swap_between_windows_and_wrong_ones_are_refused_and_reported(start, quiet_server, tmp_path, toy_bundle):
    server, name = quiet_server, "pi-heads"
    key = subjects.table_key("rpi4", name)
    source = harness.write_wav(tmp_path / "audio.wav", 4.0, seed=40)
    device = start.device(server, name, source, "--loop")
    device.wait_for_results(3)

    said = server.ask(lambda hub: put_heads(hub, name, toy_bundle.manifest.info, server.key))
    assert (said.pop("first"), said.pop("second")) == (["first"], ["second"])
    for what, reason in {
        "unsigned": "not signed", "forged": "trusted", "garbage": "not JSON", "foreign": "encoder: trained on",
        "wide": "embedding_dim: trained on", "changed": "signature", "old": "is older than",
    }.items():  # fmt: skip
        assert f"head {key}" in said[what]
        assert reason in said[what]
    seen = len(device.results())
    device.wait_for_results(seen + 3)
    device.process.signal(signal.SIGTERM)
    report = device.finish()
    in_order = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    labels = [next(iter(result.get("labels", {"none": 1}))) for result in in_order]
    assert list(dict.fromkeys(labels)) == ["none", "first", "second"]
    assert labels == sorted(labels, key=["none", "first", "second"].index), "a swap happens between two results"
    assert report["errors"] == {"SignatureError": 3, "HeadError": 3, "OldRecord": 1}
    assert {result.get("head_generation") for result in in_order} == {None, 1}

    # Away from every server the last head that fitted is still used.
    alone = start.device("nats://127.0.0.1:9", name, source, "--no-realtime", "--drain-s", "0")
    alone.finish()
    assert {next(iter(result["labels"])) for result in alone.results()} == {"second"}


def test_a_head_for_one_device_wins_and_a_given_one_over_that(start, quiet_server, tmp_path, toy_bundle):
    server, info = quiet_server, toy_bundle.manifest.info
    server.ask(lambda hub: hub.put_head(constant(info, "mine"), server.key, "m2", "pi-mine"))
    server.ask(lambda hub: hub.put_head(constant(info, "ours"), server.key, "m2", None))
    given = tmp_path / "head.json"
    given.write_bytes(constant(info, "given").to_json())
    source = harness.write_wav(tmp_path / "audio.wav", 2.0, seed=41)
    bundle = ["--target", "m2", "--bundle", toy_bundle.path]
    devices = {
        "mine": start.device(server, "pi-mine", source, "--target", "m2"),
        "ours": start.device(server, "pi-ours", source, "--target", "m2"),
        "given": start.device(server, "pi-given", source, *bundle, "--head", given),
    }
    for label, device in devices.items():
        device.finish()
        assert {next(iter(result["labels"])) for result in device.results()} == {label}


def stream(start, server, name, source):
    """Results of a device that runs over a whole file."""
    device = start.device(server, name, source, "--no-realtime")
    report = device.finish()
    assert report["windows_acked"] == report["windows_captured"]
    return device.results()


def test_a_head_is_trained_on_what_devices_sent_and_every_device_gets_it(start, tmp_path):
    server = start.server("--no-training")
    source = sounds.write_turns(tmp_path / "turns.wav", 8)
    results = stream(start, server, "pi-a", source)
    middles = np.array([result["time"] for result in results]) - WINDOW_S / 2
    began = middles[0] - WINDOW_S / 2
    events = [("pi-a", began + 2 * turn + 0.26, 1.5, sounds.LABELS[turn % 2]) for turn in range(8)]
    inside = sum(((middles >= time) & (middles <= time + seconds)).sum() for _, time, seconds, _ in events)
    with (tmp_path / "heard.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("device", "time", "seconds", "label"), *events])
    label = harness.Process(
        tmp_path / "label.log", "server", "label", "heard.csv", "--state", server.state, "--broker", server.url,
        "--push", "--json",
    )  # fmt: skip
    label.finish()
    said = json.loads(label.text()[label.text().index("{") :])
    assert set(said["pushed_to"]) == {"rpi4", "m2"}
    assert sum(said["windows"].values()) == inside > 80
    assert said["validation"]["groups"] == 8
    assert said["validation"]["accuracy"] > 0.9
    read_head(tmp_path / "head.json", server.key.public)

    results = stream(start, server, "pi-b", source)
    pure = [result for result in results if sounds.heard(result["window"])]
    right = [next(iter(result["labels"])) == sounds.heard(result["window"]) for result in pure]
    assert np.mean(right) > 0.9
    assert {result["head_generation"] for result in results} == {1}


def test_frames_give_the_embeddings_the_device_got_and_the_newest_generation_where_it_can(start, tmp_path):
    server = start.server("--no-training")
    source = sounds.write_turns(tmp_path / "turns.wav", 2)
    server.put_table(harness.always(open_bundle(server.state / "generations" / "00001"), "rpi4", "one"))
    results = stream(start, server, "pi-a", source)
    everything = [LabelledEvent("pi-a", results[0]["time"] - 1, results[-1]["time"] + 1, "tone")]
    first = open_bundle(server.state / "generations" / "00001")
    examples = server.ask(lambda hub: of_events(everything, hub, {1: first}))
    np.testing.assert_allclose(examples.embeddings, [result["embedding"] for result in results], atol=2e-3)
    assert examples.generations == (1, 1)

    # Other weights behind the cut: the new generation finishes what the old one began. Before it: it cannot.
    for changed, generations in (("two.0.weight", (2, 2)), ("one.0.weight", (1, 1))):
        tensors = {name: value.numpy() for name, value in server.model(1).state_dict().items()}
        tensors[changed] = tensors[changed] * 1.5
        windows = harness.windows_of(source)
        second = recompile(first, tensors, tmp_path / changed, generation=2, windows=windows, reference=None)
        later = server.ask(lambda hub, second=second: of_events(everything, hub, {1: first, 2: second}))
        assert later.generations == generations
        moved = np.abs(later.embeddings - examples.embeddings).max() > 1e-3
        assert moved == (generations == (2, 2))

    # A generation that is not there any more, and a time at which nobody sent anything.
    with pytest.raises(UsageError, match="none of the 1 events"):
        server.ask(lambda hub: of_events(everything, hub, {2: second}))
    with pytest.raises(UsageError, match="pi-a"):
        server.ask(lambda hub: of_events([LabelledEvent("pi-a", 5.0, 6.0, "tone")], hub, {1: first}))


def test_a_head_that_is_there_is_pushed_as_it_is_with_clips_that_judge(start, tmp_path, toy_bundle):
    server = start.server("--no-training")
    clips = sounds.write_clips(tmp_path / "clips", clips=3)
    (clips / "moo").mkdir()
    shutil.copy(next(clips.rglob("*.wav")), clips / "moo")
    shipped = constant(toy_bundle.manifest.info, "hiss", labels=sounds.LABELS)
    (tmp_path / "shipped.json").write_bytes(shipped.to_json())
    where = ["--state", server.state, "--broker", server.url, "--head", "shipped.json", "--push"]
    label = harness.Process(tmp_path / "label.log", "server", "label", clips, *where)
    label.finish()
    assert "1 recordings have labels that the head does not know" in label.text()
    assert "2 labels, pushed to" in label.text()

    async def on_the_broker(hub):
        bucket = await hub.stream.key_value(subjects.HEADS)
        return (await bucket.get(subjects.table_key("rpi4"))).value

    assert reading.read_head(server.ask(on_the_broker), server.key.public) == shipped
    kept = HeadClipsFolder(head_clips_path(server.state)).read(shipped)
    assert kept.fixed
    assert len(kept.clips) == 6

    for label in sounds.LABELS:
        shutil.rmtree(clips / label)
    refused = harness.Process(tmp_path / "refused.log", "server", "label", clips, *where)
    with pytest.raises(AssertionError, match=r"exit code 2: .*no recording has a label of the head: hiss, tone"):
        refused.finish()


def test_with_follow_every_release_gets_a_head_of_its_own(start, tmp_path):
    server = start.server("--no-training")
    clips = sounds.write_clips(tmp_path / "clips", clips=3)
    label = harness.Process(
        tmp_path / "label.log", "server", "label", clips, "--state", server.state, "--broker", server.url, "--follow"
    )
    try:
        label.wait_for_line("generation 1")
        label.wait_for_line("pushed to")
        first = open_bundle(server.state / "generations" / "00001")
        tensors = {name: value.numpy() * 1.1 for name, value in server.model(1).state_dict().items()}
        windows = harness.windows_of(next(clips.rglob("*.wav")))
        released = server.state / "generations" / "00002"
        recompile(first, tensors, released, generation=2, windows=windows, reference=None, key=server.key)
        label.wait_for_line("generation 2")
        harness.until(lambda: label.text().count("pushed to") == 2, "the second push")
    finally:
        label.signal(signal.SIGTERM)

    async def on_the_broker(hub):
        bucket = await hub.stream.key_value(subjects.HEADS)
        return (await bucket.get(subjects.table_key("rpi4"))).value

    head = reading.read_head(server.ask(on_the_broker), server.key.public)
    assert head.generations == (2, 2)
    assert head.labels == sounds.LABELS


AUDIO, WEIGHTS = os.environ.get("SSC_TEST_AUDIO"), os.environ.get("SSC_TEST_WEIGHTS")


@pytest.mark.slow
@pytest.mark.skipif(not (AUDIO and WEIGHTS), reason="set SSC_TEST_AUDIO (ESC-10) and SSC_TEST_WEIGHTS (mn04)")
def test_real_sounds_and_a_real_encoder_give_a_head_whose_labels_a_device_finds_again(start, tmp_path):
    from streamsplit_compile.bundle.compiler import CompileOptions, compile_encoder
    from streamsplit_compile.cost.targets import load_target
    from streamsplit_compile.encoder.encoders import load_encoder
    from streamsplit_compile.encoder.published.importers import import_efficientat

    import_efficientat(next(Path(WEIGHTS).glob("mn04*.pt")), tmp_path / "mn.pt", {})
    options = CompileOptions([load_target("rpi4")], cuts="3", calibration_windows=4)
    bundle = compile_encoder(load_encoder(tmp_path / "mn.pt"), options, tmp_path / "bundle")
    esc10 = Path(AUDIO) / "esc10"
    rows = list(csv.DictReader((esc10 / "labels.csv").read_text().splitlines()))
    wanted = ("chainsaw", "dog_bark", "rain", "rooster")
    few = [row for row in rows if row["class"] in wanted and sum(map(ord, row["filename"])) % 3 == 0]
    seen, fresh = ([row for row in few if (row["fold"] == "5") == held_out] for held_out in (False, True))
    with (tmp_path / "seen.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "class", "fold"])
        writer.writerows([esc10 / row["filename"], row["class"], row["fold"]] for row in seen)
    label = harness.Process(tmp_path / "label.log", "server", "label", "seen.csv", "--bundle", "bundle", "--json")
    label.finish(300)
    validation = json.loads(label.text()[label.text().index("{") :])["validation"]
    assert validation["split"] == "the 4 folds given"
    assert validation["accuracy"] > 0.8
    assert validation["group_accuracy"] > 0.9

    right = []
    for row in fresh[:6]:
        found = first_labels(tmp_path, esc10 / row["filename"], bundle=bundle.path, head=str(tmp_path / "head.json"))
        right += [label == row["class"] for label in found]
    assert np.mean(right) > 0.75


@pytest.mark.slow
@pytest.mark.skipif(not AUDIO, reason="set SSC_TEST_AUDIO (a directory with esc10/)")
def test_the_shipped_weights_name_what_is_heard_once_they_are_compiled(tmp_path):
    weights = ["--weights", "speech-and-sounds"]
    harness.Process(tmp_path / "new.log", "encoder", "new", "mobilenet_v3_small", *weights, "-o", "encoder.pt").finish()
    compiled = harness.Process(tmp_path / "compile.log", "compile", "encoder.pt", "--targets", "rpi4", "-o", "bundle")
    compiled.finish(600)
    rows = csv.DictReader((Path(AUDIO) / "esc10" / "labels.csv").read_text().splitlines())
    fresh = {row["class"]: row["filename"] for row in rows if row["fold"] == "5"}
    assert len(fresh) == 10
    right = []
    for label, name in fresh.items():
        found = first_labels(
            tmp_path, Path(AUDIO) / "esc10" / name, bundle=tmp_path / "bundle", head=tmp_path / "encoder.head.json"
        )
        right.append(max(set(found), key=found.count) == label)
    assert np.mean(right) >= 0.7


def first_labels(tmp_path, recording, **settings):
    """The best label of each window that a device without a server takes from a recording."""
    results = []
    runtime_edge.run(
        str(recording), results.append, realtime=False, gate_db=-60.0, state=tmp_path / "state", **settings
    )
    assert results
    return [next(iter(result.labels)) for result in results]
