"""Parsers of whole files, for `tools.fuzz`: each takes its file as bytes and writes it to a directory of its own."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime_edge.audio.file_decoder import read_file
from runtime_edge.base.checked_files import checksum_path, read_checked, write_checked
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import FormatError
from runtime_edge.formats.credentials import read_seed
from runtime_edge.inference.profile import Profile
from runtime_edge.policy.memory import GaussianMemory
from runtime_edge.service.status import read_status, status_file
from runtime_edge.settings import as_toml, load

if TYPE_CHECKING:
    from types import ModuleType

    from runtime_server.training.trainer import Trainer

TEST_DATA = Path(__file__).parents[1] / "tests" / "data"
GOLDEN = TEST_DATA / "golden" / "0.2.0"
Parse = Callable[[bytes], object]
_CONTENT = b"what the checksum is of"
_MEMORY = 4, 8
"""Components and width."""
_CENTRAL = b"PK\x01\x02"


@functools.cache
def directory() -> Path:
    """A directory for the files of this process, removed at its end."""
    path = Path(tempfile.mkdtemp(prefix="streamsplit-fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def toys() -> ModuleType:
    """The module with the tests' encoders."""
    spec = importlib.util.spec_from_file_location("toys", TEST_DATA / "toys.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_file(read: Callable[[Path], object], name: str) -> Parse:
    """A parser of bytes, made from one that reads a file."""

    def parse(data: bytes) -> object:
        path = directory() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        checksum_path(path).unlink(missing_ok=True)
        return read(path)

    return parse


credentials = from_file(read_seed, "pi-1.creds")
settings = from_file(lambda path: load(DeviceConfig, path, {}), "ssc-edge.toml")


def settings_corpus() -> list[bytes]:
    """Settings files with every setting that has a default or an example."""
    lines = as_toml(DeviceConfig, {}).splitlines()
    values = [line.removeprefix("# ") for line in lines if " = " in line]
    return ["\n".join(values).encode(), b'device = "pi-1"\nthreads = 2\nopus_kbps = 24.0\n']


def checksum(data: bytes) -> None:
    """Check that a file is read as it was written or refused, whatever its checksum says."""
    path = directory() / "checked"
    path.write_bytes(_CONTENT)
    checksum_path(path).write_bytes(data)
    assert read_checked(path, 100) == _CONTENT


def checksums() -> list[bytes]:
    """Checksums of a new file, and of one that was written over another."""
    found = []
    path = directory() / "written"
    for content in (b"before", _CONTENT):
        write_checked(path, content)
        found.append(checksum_path(path).read_bytes())
    return [data for data in found if hashlib.sha256(_CONTENT).hexdigest().encode() in data]


def whole_checksum(data: bytes) -> bytes:
    """The same with valid sums for its lines."""
    said = [line.partition(b" ")[0] for line in data.splitlines()]
    return b"".join(b"%b %08x\n" % (digest, zlib.crc32(digest)) for digest in said)


def audio(data: bytes) -> None:
    """Read a recording as a source delivers it, in frames of channels."""

    def read(path: Path) -> None:
        for block in read_file(path):
            assert block.frames.ndim == 2

    from_file(read, "sound.wav")(data)


def sounds() -> list[bytes]:
    """A tenth of a second in several formats, including those whose headers we parse ourselves."""
    import soundfile

    found, samples = [], np.sin(np.arange(1600, dtype=np.float32) / 5) / 2
    kinds = ("WAV", "RF64", "W64", "AIFF", "CAF", "AU", "SVX", "FLAC", "OGG")
    for kind in kinds:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, 16_000, format=kind)
        found.append(buffer.getvalue())
    return found


def status(data: bytes) -> object:
    """Parse a device's `status.json`."""
    status_file(directory()).write_bytes(data)
    return read_status(directory())


def profiles() -> list[bytes]:
    """A profile of two blocks."""
    profile = Profile(
        target="rpi4", encoder="tiny", variant="onnx-fp32", blocks=["stem", "rest"], block_ms=[1.5, 2.0],
        block_p90_ms=[2.0, 3.0], runs=10, threads=1, memory_mb=50.0, machine={"system": "Linux"},
    )  # fmt: skip
    return [profile.to_json()]


def mixture(data: bytes) -> None:
    """Parse the parameters of a mixture, which must be usable afterwards."""
    memory = GaussianMemory(*_MEMORY)
    memory.load_parameters(data)
    assert 0 <= memory.update(np.eye(_MEMORY[1], dtype=np.float32)[0]) <= 1


def mixtures() -> list[bytes]:
    """The mixture of a memory that has learnt a little."""
    memory = GaussianMemory(*_MEMORY)
    memory.update(np.random.default_rng(0).normal(size=(32, _MEMORY[1])).astype(np.float32))
    return [memory.to_bytes()]


def state(data: bytes) -> object:
    """Parse the weights of an encoder's checkpoint or of a plain state_dict."""
    from streamsplit_compile.encoder.encoders import read_state

    return from_file(read_state, "encoder.pt")(data)


def archive(data: bytes) -> object:
    """Parse an encoder as torch.export writes it."""
    from streamsplit_compile.encoder import archives

    def read(path: Path) -> object:
        if not archives.is_archive(path):
            raise FormatError("not an archive")
        return archives.load(path)

    return from_file(read, "archive.pt")(data)


def front_end(data: bytes) -> object:
    """Parse the settings of a front end."""
    from streamsplit_compile.encoder.front_ends import parse_front_end

    return parse_front_end(data, "preprocessor_config.json")


def front_ends() -> list[bytes]:
    """One front end of each type, as transformers writes it."""
    common = b'"padding_side": "right", "padding_value": 0.0, "return_attention_mask": false, "feature_extractor_type":'
    kinds = (
        b'"ASTFeatureExtractor", "do_normalize": true, "feature_size": 1, "max_length": 1024, "mean": -4.2677393, '
        b'"num_mel_bins": 128, "sampling_rate": 16000, "std": 4.5689974',
        b'"ClapFeatureExtractor", "feature_size": 64, "fft_window_size": 1024, "frequency_max": 14000, '
        b'"frequency_min": 50, "hop_length": 480, "max_length_s": 10, "nb_frequency_bins": 513, "top_db": null, '
        b'"padding": "repeatpad", "nb_max_samples": 480000, "sampling_rate": 48000, "truncation": "rand_trunc"',
        b'"WhisperFeatureExtractor", "chunk_length": 30, "dither": 0.0, "feature_size": 80, "hop_length": 160, '
        b'"n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000, "sampling_rate": 16000',
        b'"Wav2Vec2FeatureExtractor", "do_normalize": true, "feature_size": 1, "sampling_rate": 16000',
    )
    return [b"{%b %b}" % (common, kind) for kind in kinds]


@functools.cache
def archives() -> list[bytes]:
    """An archive of one layer."""
    import torch

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),)), buffer)
    return [buffer.getvalue()]


def weights(data: bytes) -> object:
    """Parse a generation's weights in a server's state."""
    from runtime_server.state.server_state import ServerState

    def read(path: Path) -> object:
        return ServerState(path.parents[1]).load_weights(int(path.stem))

    return from_file(read, "server/weights/00001.pt")(data)


def checkpoints() -> list[bytes]:
    """An encoder's checkpoint."""
    import torch

    buffer = io.BytesIO()
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(
        {"format": "streamsplit.encoder/1", "encoder": "tiny", "config": {"width": 2}, "state_dict": state}, buffer
    )
    return [buffer.getvalue()]


@functools.cache
def _make_trainer() -> Callable[[], Trainer]:
    """A function that makes trainers for the golden files' encoder."""
    from runtime_edge.formats.bundle import open_bundle
    from runtime_server.releases.release_gate import first_model
    from runtime_server.state.server_state import ServerState
    from runtime_server.suffix.generations import Generations
    from runtime_server.training.trainer import TrainConfig, Trainer
    from streamsplit_compile.encoder.graph import export_encoder

    state = GOLDEN / "server"
    root = Path(shutil.copytree(state, directory() / "golden-server"))
    bundle = open_bundle(root / "generations" / "00001")
    graph = export_encoder(toys().Tiny(), toys().Tiny.window_samples)
    generation = Generations(graph).add(bundle, ServerState(root).load_weights(1))
    return lambda: Trainer(first_model(graph, generation), TrainConfig(batch=8, min_windows=8), 6)


def training(data: bytes) -> object:
    """Parse a checkpoint of the training."""
    from runtime_server.training.checkpoint import Checkpoints

    return from_file(lambda path: Checkpoints(path, "toys:Tiny").load(_make_trainer()()), "checkpoint.pt")(data)


def ledger(data: bytes) -> object:
    """Parse a server's ledger of counted windows."""
    from runtime_server.state.ledger import Ledger

    return Ledger.from_bytes(data).counts()


def rollout(data: bytes) -> object:
    """Parse the record of which generations devices run."""
    from runtime_server.releases.rollout import Rollout, RolloutConfig

    return from_file(lambda path: Rollout(path, RolloutConfig()), "rollout.json")(data)


def members(data: bytes) -> object:
    """Parse the register of devices."""
    from runtime_server.broker.access import Access

    return from_file(lambda path: Access(path.parent).members(), "devices.json")(data)


def trials(data: bytes) -> object:
    """Parse a device's record of the bundles that it has tried."""
    from runtime_edge.updates.trial import Trials

    return from_file(lambda path: Trials(path.parent).record(), "bundles.json")(data)


def numbers(data: bytes) -> object:
    """Parse the highest accepted numbers of signed records."""
    from runtime_edge.formats.minisign import PublicKey
    from runtime_edge.formats.records.numbers import RecordNumbers

    def damaged(exc: FormatError) -> None:
        raise exc

    signer = PublicKey(bytes(8), bytes(32))
    return from_file(lambda path: RecordNumbers(path, damaged).highest("table _all.rpi4", signer), "numbers.json")(data)


def whole_numbers(data: bytes) -> bytes:
    """The same with the digest of its content, if the content can be found."""
    head, middle, body = data.partition(b'","numbers":')
    digest = hashlib.sha256(body[:-1]).hexdigest().encode()
    return b'{"digest":"sha256:' + digest + middle + body if head and middle else data


def target(data: bytes) -> object:
    """Parse a target file."""
    from streamsplit_compile.cost.targets import parse_target

    return parse_target(data, "target")


def targets() -> list[bytes]:
    """The target files that come with the package."""
    from streamsplit_compile.cost.targets import DIRECTORY

    return [path.read_bytes() for path in sorted(DIRECTORY.glob("*.toml"))]


def trace(data: bytes) -> object:
    """Parse a recorded trace, as CSV."""
    from streamsplit_compile.splitter.trace_csv import read_csv

    return from_file(read_csv, "trace.csv")(data)


def labels(data: bytes) -> object:
    """Parse recordings and their labels, as CSV."""
    from runtime_server.labels.labelled import read_clips

    return from_file(read_clips, "labels.csv")(data)


def events(data: bytes) -> object:
    """Parse events (which device heard what and when), as CSV."""
    from runtime_server.labels.labelled import read_events

    return from_file(read_events, "events.csv")(data)


def recorded(data: bytes) -> object:
    """Parse a log of results."""
    from streamsplit_compile.splitter.result_replay import read_results

    return from_file(read_results, "results.jsonl")(data)


def whole_zip(data: bytes) -> bytes:
    """Repair the checksums of a zip's entries, if it can still be opened, so that their readers get the damage."""
    found = bytearray(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            place = file.start_dir
            for entry in file.infolist():
                if found[place : place + 4] != _CENTRAL:
                    break
                local = entry.header_offset
                sizes = (int.from_bytes(found[local + at : local + at + 2], "little") for at in (26, 28))
                start = local + 30 + sum(sizes)
                crc = zlib.crc32(found[start : start + entry.compress_size]).to_bytes(4, "little")
                found[place + 16 : place + 20] = found[local + 14 : local + 18] = crc
                sizes = (int.from_bytes(found[place + at : place + at + 2], "little") for at in (28, 30, 32))
                place += 46 + sum(sizes)
    except Exception:
        return data
    return bytes(found)
