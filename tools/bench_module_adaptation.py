"""Measures what devices gain when sub-models are trained on what they hear and brought back into the encoder.

    python -m tools.bench_module_adaptation --audio recordings/ [--seeds 2] [--kept runs.jsonl] [--publish]

A server has 30 % of the speakers and trains an encoder on them (`tools.proxy_encoder`); 20 devices share the others,
each hears m of 10 words, and half of them are replaced at each of 10 steps (`tools.word_devices`). The blocks up to
`features.6` are frozen and the same for all, as they are behind a cut; what follows adapts. After each step every
device is judged on recordings of its words of that step that nothing is trained on, by what it then runs, which
chooses among all ten words; also among the device's own. The labels are the same for all arms: one recording in ten is
labelled, the others have the label that the encoder gave before anything was adapted.

Arms: `none`; `head`, the encoder with a head of each device's own, which all arms below have too; `local`, each
device's suffix trained alone; `averaged`, all suffixes trained and averaged; sub-models with half of the multiply-adds
behind the frozen blocks, of which `TRAINED` groups of each layer train: `uniform` (the first channels), `random`,
`l1` (the largest weights), `ours` (the selector's choice, sizes by the programme) and `enhanced` (the same after the
ability-enhancing stage); `none_enhanced` and `none_ours`, the encoder after that stage and the sub-models of `ours`,
not adapted.

Each run adds a line to `--kept` and is not measured again. `--publish` makes the section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime_server.labels.head_training import mean_by_group
from tools.benchmarks import DOCS, publish, show
from tools.module_adaptation_figures import section
from tools.module_arms import Ran
from tools.module_server import ARMS, Cell, Server
from tools.reference.corpus import Integers
from tools.reference.training import SCALE
from tools.word_devices import Heard, simulate

DEVICES, STEPS = 20, 10
PUBLISHED = DOCS / "module-adaptation-runs.jsonl"


def cells(seeds: int) -> Iterator[Cell]:
    """All runs, those that matter most first."""
    for seed in range(seeds):
        yield from (Cell("speech_commands", 5, seed, arm) for arm in ARMS)
    yield from (Cell("speech_commands", 2, 0, arm) for arm in ARMS)
    yield from (Cell("esc10", 5, 0, arm) for arm in ARMS)


def run(server: Server, cell: Cell, devices: int, steps: int) -> dict[str, Any]:
    """One arm through all steps, as a line to keep."""
    recordings = server.recordings(cell.data)
    classes = np.unique(server.corpus.labels[recordings])
    fleet = simulate(server.corpus, recordings, cell.words, devices, steps, cell.seed)
    shares = [[server.share(heard, fleet, classes) for heard in step] for step in fleet.steps]
    arm, began = server.arm(cell, shares[0]), time.process_time()
    values, frames, judged = [], [], []
    for step, (heard, share) in enumerate(zip(fleet.steps, shares, strict=True)):
        ran = arm.step(share, 1000 * cell.seed + 100 * step)
        values.append(sum(ran.values) / len(heard))
        frames.append(sum(len(one.labels) for one in share) / len(heard))
        for device, one in enumerate(heard):
            flags = _right(server, ran, device, one, classes), _right(server, ran, device, one, one.words)
            judged += zip(one.judged.tolist(), *flags, strict=True)
    clips = sorted({clip for clip, _, _ in judged})
    heard_of, right, own = (Counter[int](), Counter[int](), Counter[int]())
    for clip, among_all, among_own in judged:
        heard_of[clip] += 1
        right[clip] += among_all
        own[clip] += among_own
    return asdict(cell) | {
        "devices": devices, "steps": steps, "values_down": values, "windows_up": frames, "whole_values": server.values,
        "activation": server.activations[0].numel(),
        "clips": clips, "heard": [heard_of[clip] for clip in clips], "right": [right[clip] for clip in clips],
        "own": [own[clip] for clip in clips],
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def _right(server: Server, ran: Ran, device: int, heard: Heard, classes: Integers) -> list[bool]:
    """Whether each judged recording of a device is right when the head chooses among these classes."""
    chosen = np.flatnonzero(np.isin(server.owners, heard.judged))
    with torch.inference_mode():
        embeddings = ran.modules[device](server.activations[torch.from_numpy(chosen)])
        scores = torch.softmax(SCALE * ran.heads[device](embeddings)[:, classes], 1).double().numpy()
    audible = np.unique(server.owners[chosen])
    found = dict(zip(audible, classes[mean_by_group(scores, server.owners[chosen]).argmax(1)], strict=True))
    return [bool(found.get(one, -1) == server.corpus.labels[one]) for one in heard.judged]


def _cell(line: dict[str, Any]) -> Cell:
    return Cell(*(line[name] for name in Cell.__dataclass_fields__))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and show or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".cache"), help="for images and the server's encoder")
    parser.add_argument("--kept", type=Path, default=Path(".cache/module-adaptation.jsonl"))
    parser.add_argument("--seeds", type=int, default=3, help="of speech with five words")
    parser.add_argument("--only", type=int, help="at most so many runs now")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = [file for file in (PUBLISHED, given.kept) if file.exists()]
    known = {_cell(line): line for file in files for line in map(json.loads, file.read_text().splitlines())}
    missing = [cell for cell in cells(given.seeds) if cell not in known][: given.only]
    server = Server(given.audio, given.work) if missing else None
    for cell in missing:
        line = run(server, cell, DEVICES, STEPS)  # type: ignore[arg-type]
        known[cell] = line
        with given.kept.open("a") as kept:
            kept.write(json.dumps(line) + "\n")
        print(cell, f"right {sum(line['right']) / sum(line['heard']):.4f}", line["seconds"], "s", flush=True)
    lines = list(known.values())
    if given.publish:
        PUBLISHED.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (publish if given.publish else show)(section(lines))


if __name__ == "__main__":
    main()
