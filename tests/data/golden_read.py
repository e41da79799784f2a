"""What stands in the files that `golden_write` makes, read with the code that is checked out, as JSON can hold it.

    FORMATS["frames"](Path("tests/data/golden/07558ea"))

What is opened may be written to, so give a copy.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import reading
from nats.js.api import RawStreamMsg
from toys import Tiny

from runtime_edge.audio.wire_streams import AudioStreamDecoder
from runtime_edge.base.checked_files import read_checked
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.bundle import open_bundle
from runtime_edge.formats.codec import CutCodec
from runtime_edge.formats.credentials import public_key, read_seed
from runtime_edge.formats.records.actions import Costs, canonical_json
from runtime_edge.formats.records.adaptation import Adaptation
from runtime_edge.formats.records.envelope import open_record
from runtime_edge.formats.records.head import Head, read_head
from runtime_edge.formats.records.numbers import RecordNumbers
from runtime_edge.formats.records.report import decode_report
from runtime_edge.formats.records.submodel import SubModel
from runtime_edge.formats.records.table import SplitterTable
from runtime_edge.formats.results import decode_label_event, decode_result, decode_result_event
from runtime_edge.formats.update_events import decode_update_event
from runtime_edge.formats.wire import WIRE_ENCODINGS, FrameHeader, decode_frame, decode_replies
from runtime_edge.inference.prefix import Prefix
from runtime_edge.policy.memory import GaussianMemory
from runtime_edge.policy.online_learner import Learnt
from runtime_edge.service.status import read_status
from runtime_edge.transport.spool.spool import Spool
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.trial import update_log
from runtime_server.broker.access import Access
from runtime_server.ingest import dead_letters
from runtime_server.releases.release_gate import first_model
from runtime_server.releases.rollout import Rollout, RolloutConfig
from runtime_server.state.server_state import ServerState
from runtime_server.state.suspects import Suspects
from runtime_server.suffix.generations import Generations
from runtime_server.training.checkpoint import Checkpoints
from runtime_server.training.trainer import TrainConfig, Trainer
from streamsplit_compile.encoder.graph import export_encoder

NEW_IN_2 = ("width", "model")
NEW_IN_HEAD_2 = ("model", "temperature", "exit_temperatures", "background", "min_energy")
STREAM = (16_000, 1600, 800)
"""Of the audio streams: sample rate (Hz), samples of a window, samples between two windows."""
NOW = 1_700_000_100.0
Json = dict[str, Any]


def _frames(root: Path) -> Json:
    """Headers, and the activations that the payloads hold."""
    cuts = open_bundle(root / "server" / "generations" / "00001").manifest.info.cuts
    found = {}
    for path in sorted((root / "frames").glob("*.frame")):
        ((header, payload),) = decode_frame(path.read_bytes())
        codec = CutCodec(cuts[header.cut], WIRE_ENCODINGS[header.encoding])
        found[path.stem] = {**_header(header), "activation": _values(codec.decode(payload, header.compressed))}
    return found


def _streams(root: Path) -> Json:
    """Windows of streams without loss, and of Opus, whose decoder may round otherwise, how loud they are."""
    found = {}
    decoders: dict[str, AudioStreamDecoder] = {}
    for path in sorted((root / "streams").glob("*.frame")):
        ((header, payload),) = decode_frame(path.read_bytes())
        encoding = WIRE_ENCODINGS[header.encoding]
        decoder = decoders.setdefault(encoding, AudioStreamDecoder(encoding, *STREAM))
        window = decoder.decode(payload, header.window)
        heard = round(20 * np.log10(np.sqrt(np.square(window).mean()))) if encoding == "opus" else _values(window)
        found[path.stem] = {**_header(header), "window": heard}
    return found


def _replies(root: Path) -> Json:
    found = {}
    for path in sorted((root / "replies").glob("*.reply")):
        (reply,) = decode_replies(path.read_bytes())
        found[path.stem] = {
            **{name: getattr(reply, name) for name in ("window", "generation", "status", "server_us")},
            "embedding": np.frombuffer(reply.embedding, "<f2").tolist(),
            "mixture": _mixture(reply.mixture) if reply.mixture else None,
        }
    return found


def _mixture(parameters: bytes) -> list[str]:
    memory = GaussianMemory(components=4, dim=6)
    memory.load_parameters(parameters)
    return [_values(array) for array in (memory.weights, memory.means, memory.variances)]


def _records(root: Path) -> Json:
    directory, key = root / "records", minisign.read_public_key(root / "records" / "key.pub")
    table = reading.read_table((directory / "table.record").read_bytes(), key, "_all.rpi4")
    assert table == SplitterTable.from_json((directory / "table.json").read_bytes(), "table.json")
    signature = minisign.read_signature(directory / "table.json.minisig")
    head = read_head(directory / "head.json", key)
    assert head == reading.read_head((directory / "head.record").read_bytes(), key, "_all.rpi4")
    release = reading.read_release((directory / "release.record").read_bytes(), key, "rpi4")
    learnt = Learnt.from_json((directory / "learnt.json").read_bytes(), "learnt.json")
    learnt.check(table, "learnt.json")
    return {
        "key": minisign.read_secret_key(directory / "key").public.hex_id,
        "table": _table(table),
        "table signed by": minisign.verify((directory / "table.json").read_bytes(), signature, key),
        "table digest": table.upgraded_from or table.digest,
        "head": _head(head),
        "scores": np.round(head.scores(np.linspace(-1, 1, 6)).astype(float), 5).tolist(),
        "release": _fields(release),
        "generation of each device": [release.for_device(f"pi-{number}").generation for number in range(20)],
        "learnt": _fields(learnt),
        **_adaptation(directory, key),
    }


def _adaptation(directory: Path, key: minisign.PublicKey) -> Json:
    """An adaptation and a sub-model, which versions before 0.2.0 did not have."""
    if not (directory / "adaptation.json").exists():
        return {}
    adaptation = Adaptation.from_json((directory / "adaptation.json").read_bytes(), "adaptation.json")
    record = open_record((directory / "adaptation.record").read_bytes(), "adaptation", "pi-1.rpi4", key, "record")
    assert Adaptation.from_json(record.body, "record") == adaptation
    submodel = SubModel.from_json((directory / "submodel.json").read_bytes(), "submodel.json")
    return {
        "adaptation": {**_fields(adaptation), "number": record.number, "digest": adaptation.digest},
        "layers": {layer.name: [array.tolist() for array in layer.arrays()] for layer in adaptation.layers},
        "submodel": {**_fields(submodel), "digest": submodel.digest, "assets": submodel.assets()},
    }


def _head(head: Head) -> Json:
    """What the file says; version 1 did not say which model it was fitted to."""
    fields = _fields(head)
    if head.model is not None:
        return fields
    assert [fields.pop(name) for name in NEW_IN_HEAD_2] == [None, 1.0, {}, None, None]
    return {**fields, "format": "streamsplit.head/1"}


def _table(table: SplitterTable) -> Json:
    """What the file says; version 1 said less of actions, had no `ship`, and named the best action of each row."""
    fields = _fields(table)
    if table.upgraded_from is None:
        return {**fields, "policy": list(table.policy)}
    del fields["ship"], fields["upgraded_from"]
    fields["costs"] = [{name: action[name] for name in Costs.__struct_fields__} for action in fields["costs"]]
    digest = hashlib.sha256(canonical_json([fields["costs"], fields["uplink"]]).encode()).hexdigest()
    changed = {"format": "streamsplit.table/1", "costs_digest": f"sha256:{digest}", "policy": list(table.policy)}
    return {**fields, **changed}


def _device(root: Path) -> Json:
    """A device's state directory: what it would start with."""
    state = root / "device"
    store = BundleStore(state, None)
    assert store.trusted is not None
    refused = store.recover()
    bundle = store.current()
    assert bundle is not None
    table = reading.read_table((state / "table.json").read_bytes(), store.trusted)
    head = reading.read_head((state / "head.json").read_bytes(), store.trusted)
    head.check_fits(bundle.manifest.info, "head.json")
    learnt = Learnt.from_json(read_checked(state / "learnt.json", 1 << 20) or b"", "learnt.json")
    learnt.check(table, "learnt.json")
    error = Prefix(bundle).self_test()
    return {
        "trusted": store.trusted.hex_id,
        "refused now": [_fields(refusal) for refusal in refused],
        "trials": _fields(store.trials.record()),
        "log": update_log(state).events,
        "bundle": [bundle.digest, bundle.signed_by, bundle.manifest.info.generation],
        "self-test passes": error <= bundle.manifest.info.self_test.tolerance,
        "table": table.upgraded_from or table.digest,
        "head": list(head.labels),
        "learnt": _fields(learnt),
        **_numbers(state / "numbers.json", store.trusted),
        "status": _fields(read_status(state)),
        "spool": _spool(state / "spool.db"),
    }


def _numbers(path: Path, trusted: minisign.PublicKey) -> Json:
    """What was accepted last; versions before 0.2.0 kept no numbers."""
    if not path.exists():
        return {}
    numbers, names = RecordNumbers(path), ("table _all.rpi4", "head _all.rpi4", "release rpi4")
    return {"numbers": {name: numbers.highest(name, trusted) for name in names}}


def _spool(path: Path) -> Json:
    spool = Spool(path, 1 << 20)
    try:
        frames = [
            [frame.message_id, frame.index, frame.uncertainty, _header(decode_frame(frame.payload)[0][0])]
            for frame in spool.oldest(10)
        ]
        return {"frames": frames, "counters": _fields(spool.counters()), "state": _fields(spool.state())}
    finally:
        spool.close()


def _server(root: Path) -> Json:
    """A server's state directory: what it would start with."""
    path = root / "server"
    state = ServerState(path)
    ((bundle, tensors),) = state.generations(3)
    bundle.verify_assets()
    rollout = Rollout(path / "rollout.json", RolloutConfig(), clock=lambda: NOW)
    ledger = state.ledger()
    counts = ledger.counts()
    again = ledger.add_all([("pi-1", "boot", index) for index in range(8)])
    ledger.close()
    partition = subjects.partition("pi-1")
    return {
        "key": state.signing_key(None).public.hex_id,
        "server": public_key(read_seed(path / "server.nkey")),
        "devices": [_fields(member) for member in Access(path).members()],
        "bundle": [bundle.digest, bundle.manifest.info.encoder.weights],
        "weights": {name: _values(value) for name, value in sorted(tensors.items())},
        "rollout": {"listing": rollout.listing(), "wanted": _fields(rollout.wanted), "held": rollout.held},
        "windows": counts,
        "new": again,
        "guilty": [Suspects(path / "suspects", [partition]).crashed_on(partition, number) for number in (40, 41)],
        "training": _training(path),
    }


def _training(path: Path) -> Json:
    trainer = trainer_of(path)
    return {
        "steps": trainer.steps,
        "awaited": sorted(trainer.to_reread),
        "averaged": {name: _values(value) for name, value in sorted(trainer.averaged_tensors().items())},
        "weights": {name: _values(value.numpy()) for name, value in sorted(trainer.model.module.state_dict().items())},
    }


def trainer_of(path: Path) -> Trainer:
    """The trainer that goes on from the checkpoint of a server's state directory."""
    ((bundle, tensors),) = ServerState(path).generations(3)
    graph = export_encoder(Tiny(), Tiny.window_samples)
    model = first_model(graph, Generations(graph).add(bundle, tensors))
    trainer = Trainer(model, TrainConfig(batch=8, min_windows=8), 6)
    assert Checkpoints(path / "trainer" / "checkpoint.pt", "toys:Tiny").load(trainer)
    return trainer


def _letters(root: Path) -> Json:
    """Dead letters, from messages as the broker would give them back."""
    messages = json.loads((root / "dead_letters.json").read_text())

    async def get_msg(stream: str, number: int, direct: bool) -> RawStreamMsg:
        message = messages[number - 1]
        data = base64.b64decode(message["data"])
        return RawStreamMsg(message["subject"], number, data, None, message["headers"], stream)

    hub: Any = SimpleNamespace(stream=SimpleNamespace(get_msg=get_msg), url="nats://gateway:4222")
    letters = [asyncio.run(dead_letters.get(hub, number + 1)) for number in range(len(messages))]
    return {str(letter.number): _fields(letter) for letter in letters}


def _credentials(root: Path) -> Json:
    return {path.name: public_key(read_seed(path)) for path in sorted((root / "credentials").iterdir())}


def _results(root: Path) -> Json:
    """Results, events and a presence report; an event is of one kind or the other."""
    directory = root / "results"
    lines, events, updates = (
        [read(line) for line in (directory / f"{name}.jsonl").read_bytes().splitlines()]
        for name, read in (
            ("results", decode_result),
            ("events", decode_result_event),
            ("updates", decode_update_event),
        )
    )
    return {
        "results": [_fields(result) for result in lines],
        "events": [_fields(event) for event in events],
        "updates": [_fields(event) for event in updates],
        **_label_events(directory / "labels.jsonl"),
        "report": decode_report((directory / "report.json").read_bytes(), "report.json"),
    }


def _label_events(path: Path) -> Json:
    """Since 0.2."""
    if not path.exists():
        return {}
    return {"labels": [_fields(decode_label_event(line)) for line in path.read_bytes().splitlines()]}


FORMATS: dict[str, Callable[[Path], Json]] = {
    "frames": _frames,
    "streams": _streams,
    "replies": _replies,
    "records": _records,
    "device": _device,
    "server": _server,
    "dead_letters": _letters,
    "credentials": _credentials,
    "results": _results,
}


def _header(header: FrameHeader) -> Json:
    """What the frame says; version 1 says nothing of width and model."""
    return {name: value for name, value in header._asdict().items() if header.version > 1 or name not in NEW_IN_2}


def _fields(value: object) -> Any:
    """Any dataclass or struct by the names of its fields, as JSON can hold it."""
    named = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else value
    return json.loads(msgspec.json.encode(named))


def _values(array: npt.NDArray[Any]) -> str:
    """Shape and type, and the digest of all values."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {list(array.shape)} {digest[:32]}"
