"""`ssc bench`: encoders, scenarios and policies one after the other, interleaved; all measurements in one file."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import soundfile

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import UsageError
from runtime_edge.formats import strict
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.formats.records.table import LOCAL
from runtime_edge.formats.strict import Strict
from runtime_edge.inference.prefix import Prefix
from runtime_edge.inference.profile import measured_python_ms
from runtime_server.harness.processes import SSC
from runtime_server.lab.accuracy import Accuracy, Answers, Recordings, mixed
from runtime_server.lab.bench_audio import BenchAudio
from runtime_server.lab.figures import Array, Figures, figures
from runtime_server.lab.policy_arms import Policy, all_policies, chosen_policies
from runtime_server.lab.scenarios import Playable, ScenarioStep
from runtime_server.lab.session import Lab, RunRecording
from runtime_server.lab.window_energy import metered_mj
from runtime_server.telemetry.energy import AUTO, EnergySource, energy_source
from streamsplit_compile.cost.radios import radio_on
from streamsplit_compile.cost.targets import load_target

MAX_BENCH_BYTES = 64 << 20
_SPARE_S = 40.0
"""Audio beyond the scenario's length: for the device's start, and the windows that are discarded."""
_PACKAGES = ("torch", "onnxruntime", "numpy", "nats-py", "soundfile")


@dataclass(frozen=True)
class BenchConfig:
    """Settings of `ssc bench run`."""

    scenarios: tuple[Playable, ...]
    encoders: tuple[str, ...]
    """Names of registered encoders, or checkpoint files."""
    policies: tuple[str, ...] = ()
    target: str = "rpi4"
    audio: Path | None = None
    """Directory of recordings; if it contains `esc10/labels.csv`, accuracy is measured too."""
    seconds: float = 60.0
    repeats: int = 2
    clips_every: int = 1
    fold: int | None = None
    """Only this fold is heard and judged, with a bundle calibrated on the others."""
    namespaces: bool = True
    meter: Path | None = None
    profile: Path | None = None
    """Times from `ssc bench device` or `ssc profile`, in place of the target's predictions."""
    bundle: Path | None = None
    """A compiled bundle for the only encoder; without it, each encoder is compiled."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a bundle with several encoders, or with settings fixed when it was compiled."""
        if self.bundle is not None and len(self.encoders) > 1:
            raise UsageError("--bundle is of one encoder; give one --encoder")
        if self.bundle is not None and self.profile is not None:
            raise UsageError("--profile prices a bundle as it is compiled; give it to `ssc compile` instead")


class EncoderFigures(Strict, frozen=True, kw_only=True):
    """An encoder as it was compiled."""

    cuts: list[str]
    block_ms: list[float]
    """Predicted for the target; the device is paced to them."""
    accuracy: dict[str, Accuracy] = msgspec.field(default_factory=dict)
    """By policy if it always takes one action; by `scenario/policy` if it chooses."""


class PlayedScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scenario as it was played."""

    what: str
    steps: list[ScenarioStep]
    link: str = ""
    """The link whose radio the energy is computed for; empty in files from before there were several."""


class PolicyBench(Strict, frozen=True, kw_only=True):
    """Everything that one call of `ssc bench run` measured."""

    format: Literal["streamsplit.bench/1"] = "streamsplit.bench/1"
    created: str
    command: str
    target: str
    seconds: float
    """Length of each run; of the longest one if joined measurements differ."""
    shortest_s: float = 0.0
    """Length of the shortest run in that case, else 0."""
    repeats: int
    seed: int
    bytes_are: str
    link_is: str = ""
    """How the link was emulated; empty in older files."""
    python_factor: float = 0.0
    """How many times longer Python took than here; 0 in older files, in which only blocks and encoding were slowed."""
    measured_by: str = ""
    """The file of `ssc bench device` whose times were used; empty if they are the target's predictions."""
    audio: str
    fold: int | None = None
    """The only fold that was heard and judged, with bundles calibrated on the others."""
    bundle_given: bool = False
    """Whether a bundle was compiled beforehand, so that this measurement does not know what it was calibrated on."""
    machine: dict[str, str]
    encoders: dict[str, EncoderFigures]
    runs: list[Figures]
    scenarios: dict[str, PlayedScenario] = msgspec.field(default_factory=dict)

    def to_json(self) -> bytes:
        """JSON with a final newline."""
        return msgspec.json.encode(self) + b"\n"


def read_bench(path: Path) -> PolicyBench:
    """Read a measurement. Raises FormatError naming file and field."""
    return strict.read(path, PolicyBench, MAX_BENCH_BYTES)


def joined(benches: Sequence[PolicyBench]) -> PolicyBench:
    """Measurements of one target and seed as one; runs of the same encoder and scenario count as further repetitions.

    Raises UsageError for measurements that cannot be combined, such as one encoder in one scenario with other times.
    """
    whole = benches[0]
    for more in benches[1:]:
        again_played = {(run.encoder, run.scenario) for run in whole.runs} & {
            (run.encoder, run.scenario) for run in more.runs
        }
        for name in (
            "target",
            "seed",
            "bytes_are",
            "link_is",
            "measured_by",
            "fold",
            *(["seconds"] if again_played else []),
        ):
            if getattr(whole, name) != getattr(more, name):
                raise UsageError(f"{name}: {getattr(whole, name)!r} and {getattr(more, name)!r} cannot be joined")
        lengths = [length for bench in (whole, more) for length in (bench.seconds, bench.shortest_s) if length]
        encoders = dict(whole.encoders)
        for name, compared in more.encoders.items():
            known = encoders.get(name, compared)
            if known.cuts != compared.cuts:
                raise UsageError(f"encoders.{name}.cuts: {known.cuts} and {compared.cuts} cannot be joined")
            accuracy = compared.accuracy | known.accuracy
            encoders[name] = msgspec.structs.replace(compared, accuracy=accuracy)
        again = Counter((run.encoder, run.scenario, run.policy) for run in whole.runs)
        runs = [
            msgspec.structs.replace(run, repeat=run.repeat + again[run.encoder, run.scenario, run.policy])
            for run in more.runs
        ]
        whole = msgspec.structs.replace(
            whole,
            command=f"{whole.command}; {more.command}",
            seconds=max(lengths),
            shortest_s=min(lengths) if len(set(lengths)) > 1 else 0.0,
            repeats=max(run.repeat for run in [*whole.runs, *runs]) + 1,
            bundle_given=whole.bundle_given or more.bundle_given,
            encoders=encoders,
            runs=[*whole.runs, *runs],
            scenarios=more.scenarios | whole.scenarios,
        )
    return whole


async def run_bench(config: BenchConfig, say: Callable[[str], None]) -> PolicyBench:
    """Measure everything. Raises UsageError if the lab cannot be set up, CheckFailed if a process fails."""
    work = Path(tempfile.mkdtemp(prefix="ssc-bench-"))
    try:
        encoders, runs, bytes_are, link_is, factor = {}, [], "", "", 0.0
        python_ms = None if config.profile is None else measured_python_ms(config.profile)
        for name in config.encoders:
            measured = await _PreparedEncoder.prepare(name, config, work, say)
            lab = Lab(measured.work, measured.bundle, config.target, config.namespaces, python_ms=python_ms)
            async with lab:
                await lab.serve(measured.file)
                bytes_are, link_is, factor = lab.measured_on, lab.link_is, lab.python_factor
                found, accuracy = await measured.measure(lab)
            runs += found
            info = measured.bundle.manifest.info
            block_ms = list(info.targets[config.target].block_ms)
            encoders[measured.name] = EncoderFigures(
                cuts=[cut.name for cut in info.cuts], block_ms=block_ms, accuracy=accuracy
            )
        return PolicyBench(
            created=time.strftime("%Y-%m-%dT%H:%M:%S"),
            command=command_of(sys.argv[1:]),
            target=config.target,
            seconds=config.seconds,
            repeats=config.repeats,
            seed=config.seed,
            bytes_are=bytes_are,
            link_is=link_is,
            python_factor=round(factor, 2),
            measured_by="" if config.profile is None else config.profile.name,
            fold=config.fold,
            bundle_given=config.bundle is not None,
            audio="a synthesised soundscape" if config.audio is None else f"recordings of {config.audio.name}/",
            machine=_machine(),
            encoders=encoders,
            runs=runs,
            scenarios={
                s.name: PlayedScenario(s.what, s.steps(config.seconds, config.seed), s.link) for s in config.scenarios
            },
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _PreparedEncoder:
    """A compiled encoder, with the audio that its devices hear."""

    name: str
    file: Path
    bundle: Bundle
    work: Path
    audio: Path
    reference: Array
    config: BenchConfig
    say: Callable[[str], None]

    @classmethod
    async def prepare(cls, name: str, config: BenchConfig, root: Path, say: Callable[[str], None]) -> _PreparedEncoder:
        file = Path(name)
        short = file.stem if file.suffix else name
        work = root / short
        work.mkdir()
        if not file.suffix:
            file = work / "encoder.pt"
            await _ssc("encoder", "new", name, "-o", str(file))
        elif not file.is_file():
            raise UsageError(f"{file}: no such encoder file")
        heard = BenchAudio(config.audio, config.fold)
        if config.bundle is None:
            say(f"{short}: compiling for {config.target}")
            calibrate = ["--calibrate", str(folder)] if (folder := heard.calibration(work)) else []
            targets = ",".join(dict.fromkeys((config.target, "x86-64")))
            profile = ["--profile", str(config.profile)] if config.profile else []
            await _ssc("compile", str(file), "--targets", targets, "-o", str(work / "bundle"), *calibrate, *profile)
        bundle = open_bundle(config.bundle or work / "bundle")
        audio = work / "audio.wav"
        seconds = config.seconds + _SPARE_S
        waveform = heard.waveform(seconds, bundle.manifest.info.front_end.sample_rate, config.seed)
        soundfile.write(audio, waveform, bundle.manifest.info.front_end.sample_rate, subtype="PCM_16")
        return cls(short, file.resolve(), bundle, work, audio, _reference(bundle, waveform), config, say)

    async def measure(self, lab: Lab) -> tuple[list[Figures], dict[str, Accuracy]]:
        """Run every scenario, every repetition and every policy."""
        runs: list[Figures] = []
        played: dict[str, Policy] = {}
        for scenario in self.config.scenarios:
            policies = self._policies(scenario)
            played |= {policy.name: policy for policy in policies}
            self.say(f"{self.name} {scenario.name}: playing {len(policies)} policies")
            for repeat in range(self.config.repeats):
                for policy in policies:
                    runs.append(await self._play(lab, scenario, policy, repeat))
                    latency = runs[-1].latency_ms["p50"]
                    self.say(f"{self.name} {scenario.name} {repeat}: {policy.name} {latency:.0f} ms")
        return runs, self._accuracy(list(played.values()), runs)

    def _policies(self, scenario: Playable) -> list[Policy]:
        every = all_policies(self.bundle, self.config.target, scenario, self.config.seed)
        return chosen_policies(every, self.config.policies)

    async def _play(self, lab: Lab, scenario: Playable, policy: Policy, repeat: int) -> Figures:
        steps = scenario.steps(self.config.seconds, self.config.seed)
        before = rapl.joules() if (rapl := _rapl()) else None
        recording = await lab.play(policy, self.audio, steps, self.config.seconds)
        return figures(
            recording,
            encoder=self.name,
            scenario=scenario.name,
            policy=policy.name,
            repeat=repeat,
            bundle=self.bundle,
            target=self.config.target,
            steps=steps,
            radio=radio_on(load_target(self.config.target), scenario.link),
            reference=self.reference,
            measured_mj=self._measured_mj(recording, before),
        )

    def _measured_mj(self, recording: RunRecording, before: float | None) -> dict[str, float]:
        windows, found = len(recording.results), {}
        if before is not None and (rapl := _rapl()):
            found["rapl"] = (rapl.joules() - before) * 1e3 / windows  # including the start and end of the process
        if self.config.meter is not None:
            found["meter"] = metered_mj(self.config.meter, recording.began, recording.seconds, windows)
        return found

    def _accuracy(self, played: Sequence[Policy], runs: Sequence[Figures]) -> dict[str, Accuracy]:
        root = self.config.audio
        if root is None or not (root / "esc10" / "labels.csv").is_file():
            return {}
        front_end = self.bundle.manifest.info.front_end
        recordings = Recordings(root, self.work, self.config.clips_every, front_end, self.config.fold)
        fixed = {policy.name: policy.answers for policy in played if policy.answers is not None}
        choosing = {f"{run.scenario}/{run.policy}": run for run in runs if run.policy not in fixed and not run.repeat}
        needed = {LOCAL, *(name for names in fixed.values() for name in names)}
        for run in choosing.values():
            needed |= {*run.first_answers, *run.final_answers}
        self.say(f"{self.name}: {len(recordings.clips.labels)} clips by {', '.join(sorted(needed))}")
        by_name = Answers(self.bundle, self.config.target).of(needed, recordings.windows)
        whole = by_name[LOCAL]
        found = {
            name: recordings.score(by_name[final], by_name[first], whole) for name, (first, final) in fixed.items()
        }
        for name, run in choosing.items():
            first, final = (mixed(by_name, sequence) for sequence in (run.first_answers, run.final_answers))
            found[name] = recordings.score(final, first, whole)
        return found


def _reference(bundle: Bundle, waveform: Array) -> Array:
    """The float32 embedding (windows, d) of every window of the audio."""
    front_end = bundle.manifest.info.front_end
    prefix = Prefix(bundle)
    starts = range(0, waveform.size - front_end.window_samples + 1, front_end.hop_samples)
    return np.stack([prefix.embed(waveform[start : start + front_end.window_samples]) for start in starts])


async def _ssc(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *SSC, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise UsageError(f"ssc {arguments[0]}: {output.decode(errors='replace').strip().splitlines()[-1:]}")


@cache
def _rapl() -> EnergySource | None:
    """The energy counters of this machine; None if it has no working ones."""
    return energy_source(AUTO)


def _machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def command_of(arguments: Sequence[str]) -> str:
    """The command as it is published: paths are reduced to their last part."""
    pairs = zip(["", *arguments], arguments, strict=False)
    names = [Path(word).name if "/" in word and before != "--policy" else word for before, word in pairs]
    return " ".join(["ssc", *names])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def save(bench: PolicyBench, out: Path) -> Path:
    """Write `bench.json` below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    write_atomic(path, bench.to_json())
    return path
