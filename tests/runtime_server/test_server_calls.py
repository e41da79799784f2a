"""`serve` and `train_head` as a program calls them."""

import asyncio
import queue
import threading

import numpy as np
import pytest
import soundfile

import runtime_edge
import runtime_server
from runtime_edge.errors import LinkError, UsageError
from runtime_edge.formats.minisign import read_public_key, write_key_pair
from runtime_edge.formats.records.head import read_head
from runtime_server.broker.hub import Hub

pytestmark = pytest.mark.integration


def test_a_server_serves_until_it_is_stopped(small_bundle, tiny_file, tmp_path, free_port):
    started, ended = queue.Queue(), queue.Queue()

    def work():
        ended.put(
            runtime_server.serve(
                tiny_file, small_bundle.path, started.put, factory="toys:Tiny", state=tmp_path / "server",
                port=free_port, training=False,
            )
        )  # fmt: skip

    thread = threading.Thread(target=work)
    thread.start()
    running = started.get(timeout=60)
    assert running.url == f"nats://127.0.0.1:{free_port}"
    assert running.page is None

    async def ask():
        async with Hub(running.url, "test") as hub:
            return await hub.signing_key(), await hub.server_status()

    signed_by, status = asyncio.run(ask())
    assert signed_by == running.public_key
    assert status["generation"] == 1

    seen = []
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound, 4000)
    report = runtime_edge.run(
        str(tmp_path / "sound.wav"), seen.append, broker=running.url, state=tmp_path / "edge", realtime=False,
        device="pi-1",
    )  # fmt: skip
    assert len(seen) == report["windows_captured"] == 6
    running.stop()
    thread.join(timeout=60)
    assert ended.get_nowait()["training_steps"] == 0


def test_what_a_server_cannot_start_with_is_named(small_bundle, tiny_file, tmp_path):
    with pytest.raises(UsageError, match=r"runtime_server.serve: 'prot': no such setting, did you mean port"):
        runtime_server.serve(tiny_file, small_bundle.path, prot=4222)
    with pytest.raises(UsageError, match=r"runtime_server.serve: batch is 1: Expected `int` >= 2"):
        runtime_server.serve(tiny_file, small_bundle.path, batch=1)
    with pytest.raises(LinkError):
        runtime_server.serve(
            tiny_file, small_bundle.path, factory="toys:Tiny", state=tmp_path / "s", broker="nats://127.0.0.1:9"
        )


def test_a_head_is_trained_on_recordings_and_labels_others(small_bundle, recordings, signing_key, tmp_path):
    public = write_key_pair(signing_key, tmp_path / "key")
    said = []
    head = runtime_server.train_head(
        recordings, small_bundle.path, tmp_path / "head.json", key=tmp_path / "key",
        progress=lambda what, done, total: said.append((what, total)),
    )  # fmt: skip
    assert read_head(tmp_path / "head.json", read_public_key(public)) == head
    assert head.labels == ("high", "low")
    assert head.validation.accuracy > 0.8
    assert set(said) == {("embedding recordings", 12)}
    encoder = runtime_edge.open(str(small_bundle.path), head=str(tmp_path / "head.json"))
    assert next(iter(encoder.classify(recordings / "low" / "0.wav")[1])) == "low"


def test_what_no_head_can_be_trained_on_is_named(small_bundle, recordings, tmp_path):
    with pytest.raises(UsageError, match="missing: no such folder or CSV file"):
        runtime_server.train_head(tmp_path / "missing", small_bundle)
    (tmp_path / "heard.csv").write_text("device,time,label\npi-1,1,rain\n")
    with pytest.raises(UsageError, match=r"heard.csv: names what devices have sent, .*`ssc server label"):
        runtime_server.train_head(tmp_path / "heard.csv", small_bundle)
    with pytest.raises(UsageError, match=r"louder than 0\.0 dB"):
        runtime_server.train_head(recordings, small_bundle, gate_db=0.0)
    assert not (tmp_path / "head.json").exists()
