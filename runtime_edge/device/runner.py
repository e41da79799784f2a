"""What the worker owns: the engine with its audio stream, the splitter, the spool, and their counters.

The loop owns the rest (`runtime_edge.device.pipeline`). The two exchange frozen messages: `Situation` and `Update` to
the runner, `InFlight` and `RunnerState` from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from runtime_edge.base.histogram import Histogram
from runtime_edge.config import DeviceConfig
from runtime_edge.device.capture import CapturedWindow
from runtime_edge.device.in_flight import InFlight
from runtime_edge.errors import UsageError
from runtime_edge.formats import subjects
from runtime_edge.formats.manifest import BundleInfo
from runtime_edge.formats.records.table import LOCAL, SplitterTable
from runtime_edge.inference.engine import Embedding, Engine, FirstAnswer, FirstAnswerer, Judge, PrefixResult
from runtime_edge.policy.online_learner import OnlineLearner
from runtime_edge.policy.reward import Conditions
from runtime_edge.policy.ship_gate import Gate, MostUncertain, ShipGate
from runtime_edge.policy.splitter import Decision
from runtime_edge.policy.surroundings import Surroundings
from runtime_edge.system import CpuMonitor
from runtime_edge.transport.accounting import Accounting, Stage
from runtime_edge.transport.frame_store import FrameStore
from runtime_edge.transport.spool.spool import SpoolState
from runtime_edge.updates.table_updater import forbidden_payloads, make_splitter


class Situation(msgspec.Struct, frozen=True):
    """What the loop knows when a window begins."""

    uncertainty: float | None
    """Uncertainty of the latest window that has one."""
    bandwidth_mbps: float
    rtt_ms: float
    connected: bool
    has_room: bool
    """Whether a live frame may be sent."""


class Update(msgspec.Struct, frozen=True):
    """What to switch to before the next window."""

    engine: Engine | None
    table: SplitterTable | None
    learner: OnlineLearner | None
    """The learner for the table, with `--learn`."""


class RunnerState(msgspec.Struct, frozen=True):
    """The runner's state, for the device's status."""

    generation: int
    bundle: str
    variant: str
    runtime: str
    blocks: tuple[int, int]
    """How many blocks are on this device, and how many the bundle has."""
    front_end: str
    """What computes the front end: `fft` or `graph`."""
    table: str
    """Who made the splitter table."""
    splitter: dict[str, float]
    """The values on which the latest choice was based."""
    cpu: float
    spool: SpoolState
    report: dict[str, Any]
    stage_ms: dict[Stage, Histogram]


class WindowRunner:
    """Chooses a cut, runs the prefix, makes the frame and spools it. Everything here happens in the worker's thread.

    Args:
        config: the device's settings.
        boot: the token of this run.
        engine: the first engine.
        table: the first table, which fits the engine.
        learner: corrects the table, with `--learn`.
        frame_store: keeps frames until the broker has them.
        accounting: what is counted here and in the frame store.
        ships: whether there is anybody to send frames to.
        judge: gives uncertainty and novelty of a first answer's embedding, from the device's memory.
        entropy: how undecided the head is about an embedding, from the exit at a cut or the whole encoder.
    """

    def __init__(
        self,
        config: DeviceConfig,
        boot: str,
        engine: Engine,
        table: SplitterTable,
        learner: OnlineLearner | None,
        frame_store: FrameStore,
        accounting: Accounting,
        ships: bool,
        judge: Callable[[Embedding], tuple[float, float]],
        entropy: Callable[[BundleInfo, Embedding, str | None], float | None],
    ) -> None:
        """Raises what `make_splitter` raises, and UsageError for a cascade under a privacy floor."""
        if config.cascade and (floor := config.privacy_floor):
            raise UsageError(f"cascade: sends audio, which the privacy floor ({floor}) forbids; leave one of them out")
        self._judge, self._entropy = judge, entropy
        self._cascade = MostUncertain(config.cascade) if config.cascade else None
        self._unlabelled = MostUncertain(config.cascade) if config.cascade else None
        self._gate = self._cascade or _gate_of(table, config)
        self._config, self._boot, self._engine, self._ships = config, boot, engine, ships
        self._splitter = make_splitter(engine.bundle, table, config)
        self._splitter.learn(learner)
        self._frame_store, self._accounting = frame_store, accounting
        self._cpu, self._surroundings = CpuMonitor(), Surroundings()
        accounting.generation_start = accounting.generation_end = engine.generation

    def run(self, window: CapturedWindow, now: Situation) -> InFlight:
        """Run one window, up to spooling its frame. Raises what running raises."""
        accounting, splitter, engine = self._accounting, self._splitter, self._engine
        accounting.pcm16_bytes += 2 * engine.bundle.manifest.info.front_end.hop_samples
        accounting.stage_ms["wait"].observe((time.monotonic() - window.ready_at) * 1e3)
        cpu = self._cpu.load()
        decision = splitter.choose(
            now.uncertainty,
            cpu,
            now.bandwidth_mbps,
            now.rtt_ms,
            connected=now.connected,
            extra=self._surroundings.now(),
        )
        cascade = self._cascade is not None and self._ships and engine.prefix.fits(engine.last_cut)
        if not self._ships or self._config.min_cut == LOCAL:
            # There is nobody to ship to, or nothing may be shipped.
            decision = decision._replace(cut=LOCAL, explored=False, width=0, exit=False)
        elif cascade:
            decision = decision._replace(cut=engine.cut_names[0], explored=False, width=0, exit=False)
        accounting.explorations += decision.explored
        started = time.monotonic()
        index = engine.last_cut if decision.cut == LOCAL else engine.cut_names.index(decision.cut)
        live = decision.cut != LOCAL and now.has_room
        first: FirstAnswerer | None = "device" if cascade else "exit" if decision.exit and live else None
        as_priced = live or index == engine.last_cut  # otherwise more blocks run than the action's cost accounts for
        if splitter.learner is not None and as_priced and first != "device":
            at = Conditions(splitter.uncertainty, cpu, now.bandwidth_mbps, now.rtt_ms)
            splitter.learner.decided(window.index, decision.row, decision.action, at)
        message_id = subjects.message_id(self._config.device, self._boot, window.index)
        step = self._frame(window, message_id, decision, index, live, first)
        if first == "device" and not step.frame:
            decision = decision._replace(cut=LOCAL)
        live = live and bool(step.frame)
        device_ms = (time.monotonic() - started) * 1e3
        return InFlight(
            window=window,
            message_id=message_id,
            live=live,
            decision=decision,
            filler_worth=splitter.filler_worth(),
            capped=splitter.table.limits.mb_per_hour is not None,
            hop_s=splitter.table.hop_s,
            cut=engine.cut_names[index] if decision.cut != LOCAL else LOCAL,
            engine=engine,
            learner=splitter.learner,
            step=step,
            frame_bytes=len(step.frame),
            cpu=cpu,
            bandwidth_mbps=now.bandwidth_mbps,
            rtt_ms=now.rtt_ms,
            device_ms=device_ms,
        )

    def install(self, update: Update) -> None:
        """Switch to another engine or table, which fit each other."""
        if update.engine is not None:
            self._engine = update.engine
            self._accounting.generation_end = update.engine.generation
        manifest = self._engine.bundle.manifest
        before = self._splitter.table
        assets = manifest.widths, manifest.exit_cuts, forbidden_payloads(manifest, self._config)
        table = before if update.table is None else update.table
        learner = self._splitter.learner if table == before else update.learner
        if table != before or assets != self._splitter.assets:
            if table.bundle_cuts == before.bundle_cuts:
                self._splitter.swap(table, *assets)
            else:
                self._splitter = make_splitter(self._engine.bundle, table, self._config)
            self._splitter.learn(learner)
            self._accounting.table_swaps += table != before
        if table.ship != before.ship and self._cascade is None:
            self._gate = _gate_of(table, self._config)

    def restart_stream(self) -> None:
        """Start a new audio stream with the next window, because the server cannot decode this one any further."""
        self._engine.restart_stream()

    def embed(self, in_flight: InFlight) -> Embedding | None:
        """The (d,) embedding of a window that the device must finish itself; None if memory has no room for it."""
        return in_flight.engine.embed(in_flight.window.samples)

    def state(self) -> RunnerState:
        """What runs here, and the counters. Raises SpoolError."""
        engine, splitter = self._engine, self._splitter
        return RunnerState(
            generation=engine.generation,
            bundle=engine.bundle.digest,
            variant=engine.prefix.variant,
            runtime=engine.prefix.backend.name,
            blocks=engine.prefix.blocks_there,
            front_end=engine.prefix.front_end,
            table=splitter.table.created_by,
            splitter=splitter.state,
            cpu=self._cpu.load(),
            spool=self._frame_store.state(),
            report=self._frame_store.report(),
            stage_ms={stage: times.copy() for stage, times in self._accounting.stage_ms.items()},
        )

    def _frame(
        self,
        window: CapturedWindow,
        message_id: str,
        decision: Decision,
        cut: int,
        live: bool,
        first: FirstAnswerer | None,
    ) -> PrefixResult:
        step = self._engine.run(
            window.samples,
            window.index,
            window.capture_time_ns,
            cut,
            self._splitter.uncertainty,
            not live,
            decision.width,
            first,
            None if first is None else self._first_answer(first, cut, decision.explored),
        )
        stages = self._accounting.stage_ms
        if first == "exit":
            stages["exit"].observe(step.first_ms)
        stages["prefix"].observe(step.prefix_ms + (step.first_ms if first == "device" else 0.0))
        local, ships = decision.cut == LOCAL, bool(step.frame)
        if step.first is None and step.embedding is not None and not local and not decision.explored:
            ships = self._is_worth_sending(step.embedding, None)
        if local or not ships:
            self._frame_store.keep_local()
            self._accounting.kept += not local
            return msgspec.structs.replace(step, frame=b"")
        stages["encode"].observe(step.encode_ms)
        uncertainty = self._splitter.uncertainty if step.first is None else step.first.uncertainty
        started = time.perf_counter()
        self._frame_store.put(message_id, window.index, step.frame, uncertainty, claim=live)
        stages["spool"].observe((time.perf_counter() - started) * 1e3)
        return step

    def _first_answer(self, by: FirstAnswerer, cut: int, explored: bool) -> Judge:
        """The function that judges a first answer's embedding."""
        at = self._engine.cut_names[cut] if by == "exit" else None

        def judge(embedding: Embedding) -> FirstAnswer:
            uncertainty, novelty = self._judge(embedding)
            ships = explored or self._is_worth_sending(embedding, at, uncertainty)
            return FirstAnswer(by, embedding, uncertainty, novelty, ships)

        return judge

    def _is_worth_sending(self, embedding: Embedding, exit_cut: str | None, uncertainty: float = 0.0) -> bool:
        """Whether the thresholds say to ship a window, given the device's own embedding of it.

        Without a head, which would know when it is unsure, a cascade goes by the memory's uncertainty.
        """
        if self._gate is None:
            return True
        entropy = self._entropy(self._engine.bundle.manifest.info, embedding, exit_cut)
        if entropy is None:
            return self._unlabelled is None or self._unlabelled.ships(uncertainty)
        return self._gate.ships(entropy)


def _gate_of(table: SplitterTable, config: DeviceConfig) -> Gate | None:
    return None if table.ship is None else ShipGate(table.ship, config.seed)
