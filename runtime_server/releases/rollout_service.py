"""Carries out a rollout: listens to devices, publishes the wanted generation, and serves an operator's requests.

The server's side of `ssc server releases`: requests on `srv.releases`, {"action": ..., "generation": ...}, are answered
with the list of releases or with {"error": ...}.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from nats.aio.msg import Msg

from runtime_edge.base.aio import cancel_all
from runtime_edge.base.broker_errors import BROKER_ERRORS
from runtime_edge.errors import FormatError, LinkError, SscError, UsageError, WaitsForBudget
from runtime_edge.formats import minisign, subjects
from runtime_edge.formats.records.report import decode_report
from runtime_edge.formats.strict import decode
from runtime_server.broker.hub import MAX_MESSAGE_BYTES, NO_SERVER, Hub, released_bundle
from runtime_server.broker.pushed_heads import PushedHeads
from runtime_server.releases.bundle_publisher import prune, publish_patches
from runtime_server.releases.device_reports import DeviceTraffic, all_together
from runtime_server.releases.release_gate import ReleaseGate, ReleaseOutcome
from runtime_server.releases.rollout import Rollout
from runtime_server.releases.update_pace import UpdatePace
from runtime_server.state.server_state import ServerState
from runtime_server.suffix.generations import KEPT_GENERATIONS, Generation, Generations

RELEASES_SUBJECT = "srv.releases"
_LOG = logging.getLogger(__name__)
_TICK_S = 1.0
_RETRY_S, _LONGEST_WAIT_S = 2.0, 600.0
_KEPT_ON_DISK = 2 * KEPT_GENERATIONS

RolloutAction = Literal["list", "promote", "rollback", "pin", "unpin"]


class _RolloutRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: RolloutAction
    generation: int | None = None


class RolloutService:
    """One server's rollout; everything runs on its event loop.

    `ready` is awaited with the generations to complete before devices hear of a change, so that other ranks already
    complete them. It may raise LinkError.
    """

    def __init__(
        self,
        hub: Hub,
        rollout: Rollout,
        generations: Generations,
        state: ServerState,
        key: minisign.SecretKey | None,
        ready: Callable[[list[int]], Awaitable[None]] | None = None,
        gate: ReleaseGate | None = None,
        heads: PushedHeads | None = None,
    ) -> None:
        self._hub, self._rollout, self._generations, self._state = hub, rollout, generations, state
        self._key, self._ready, self._gate, self._heads = key, ready, gate, heads
        self._pace = UpdatePace(rollout)
        self._news: asyncio.Queue[tuple[Generation, ReleaseOutcome | None]] = asyncio.Queue()
        self._paced = ""
        """The message about a generation that waits for the budget."""
        self._publishing = asyncio.Lock()
        self._told: tuple[object, ...] | None = None
        self._unreadable = 0
        self._heard: set[str] = set()
        self._waiting: dict[str, bytes] = {}
        """The latest report of each device that reported more than once since the last tick."""

    async def start(self, unreleased: int | None) -> None:
        """Publish what is wanted, including a generation that was compiled but never released. Raises LinkError."""
        for device, report in (await self._hub.presence()).items():
            self._rollout.observe(device, report)
        generation = None if unreleased is None else self._generations.get(unreleased)
        if generation is None or self._rollout.held:
            await self._publish()
        else:
            try:
                await self._offer(generation, None)
            except WaitsForBudget:
                await self._publish()
                self._news.put_nowait((generation, None))
        await self._hub.subscribe(RELEASES_SUBJECT, self._on_request)
        # Subscribed directly, not through a consumer, which would die with the broker.
        await self._hub.subscribe(subjects.bucket_subject(subjects.PRESENCE, "*"), self._on_report)

    def released(self, generation: Generation, outcome: ReleaseOutcome) -> None:
        """Offer a newly compiled generation to the devices."""
        self._news.put_nowait((generation, outcome))

    async def run(self) -> None:
        """Run until cancelled."""
        tasks = [asyncio.create_task(job) for job in (self._release_forever(), self._tick_forever())]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_all(tasks)

    async def _release_forever(self) -> None:
        while True:
            generation, outcome = await self._news.get()
            while generation.number == self._generations.newest.number:
                if held := self._rollout.held:
                    _LOG.info("generation %d is not released: %s", generation.number, held)
                    break
                try:
                    await self._offer(generation, outcome)
                    break
                except WaitsForBudget as exc:
                    await asyncio.sleep(min(max(exc.until - self._rollout.now(), _TICK_S), _LONGEST_WAIT_S))
                except (SscError, OSError) as exc:
                    _LOG.warning("generation %d waits: %s", generation.number, exc)
                    await asyncio.sleep(_RETRY_S)

    async def _offer(self, generation: Generation, outcome: ReleaseOutcome | None) -> None:
        """Publish everything that devices need for a generation, then the release. Raises LinkError or OSError."""
        bundle, wanted = generation.bundle, self._rollout.wanted
        variant = next(iter(bundle.manifest.info.targets.values())).variant
        full = sum(size for _, size in bundle.manifest.device_files(variant).values())
        await self._hub.publish_bundle(bundle)
        patched = full
        # Last, the generation that most devices run: its cost is the one listed.
        for number in sorted({wanted.stable, self._rollout.base} - {generation.number}):
            earlier = self._generations.get(number)
            if earlier is not None:
                patched = (await publish_patches(self._hub, earlier.bundle, bundle)).get(variant, full)
        self._wait_for_budget(generation.number, patched)
        facts: dict[str, float | None] = {"full_bytes": full, "patch_bytes": patched}
        if outcome is not None and outcome.before is not None and outcome.after is not None:
            facts |= {"held_out_before": outcome.before.loss, "held_out_after": outcome.after.loss}
        await self._give_heads(generation)
        self._rollout.offer(generation.number, bundle.digest, facts)
        share = self._rollout.wanted.share
        _LOG.info("generation %d released to %.0f %% of the devices", generation.number, 100 * share)
        await self._decide()
        await self._tidy()

    async def _give_heads(self, generation: Generation) -> None:
        """Push refitted heads before devices hear of a generation: each takes its head together with the blocks."""
        if self._gate is None or self._heads is None:
            return
        pushed = await self._heads.read()
        fitted = await asyncio.to_thread(self._gate.heads.refit, pushed, generation)
        if fitted:
            self._gate.heads.forget(await self._heads.give(fitted, pushed))

    def _wait_for_budget(self, number: int, count: int) -> None:
        """Raise WaitsForBudget unless this many bytes may be sent to each device now; warn only once."""
        waits, until = self._pace.objection(number, count)
        if waits and waits != self._paced:
            _LOG.warning("%s", waits)
        self._paced = waits
        if waits:
            raise WaitsForBudget(waits, until)

    async def _publish(self) -> None:
        """Publish the wanted generations, if they have changed. Raises LinkError."""
        async with self._publishing:
            wanted = self._rollout.wanted
            self._generations.protect(self._rollout.running)
            kept = [generation.number for generation in self._generations.kept()]
            oldest = kept[0]
            if self._told == (wanted, oldest):
                return
            stable, trial = (
                None if number is None else self._generations.get(number) for number in (wanted.stable, wanted.trial)
            )
            chosen = trial or stable
            if chosen is None or stable is None:
                raise LinkError(f"generation {wanted.stable} is no longer on this server's disk")
            back = stable.number < wanted.highest
            await self._hub.publish_bundle(stable.bundle)
            await self._hub.publish_bundle(chosen.bundle)
            if self._ready is not None:
                await self._ready(kept)
            for target in chosen.bundle.manifest.info.targets:
                await self._hub.release(
                    chosen.bundle,
                    target,
                    self._key,
                    back and trial is None,
                    share=wanted.share,
                    stable=None if trial is None else released_bundle(stable.bundle, back),
                    oldest=oldest,
                )
            self._told = (wanted, oldest)

    async def _tidy(self) -> None:
        """Free space on the broker's disk and this server's; what cannot be removed now is tried again next time."""
        kept = self._generations.kept()
        numbers = {generation.number for generation in kept}
        try:
            freed = await prune(self._hub, [generation.bundle for generation in kept])
            gone = await asyncio.to_thread(self._state.prune, _KEPT_ON_DISK, numbers)
        except (SscError, OSError) as exc:
            _LOG.warning("what is no longer needed cannot be removed: %s", exc)
            return
        _LOG.info("generations %s are completed; %s removed from the disk, %d bytes", sorted(numbers), gone, freed)

    async def _on_report(self, message: Msg) -> None:
        """Process a report now, or at the next tick if the device has already reported since the last one."""
        device = message.subject.rsplit(".", 1)[-1]
        if device in self._heard:
            self._waiting[device] = message.data
            return
        self._heard.add(device)
        self._observe(device, message.data)
        await self._decide()

    def _observe(self, device: str, data: bytes) -> None:
        try:
            if not subjects.is_device(device):
                raise FormatError("no device has this name")
            report = decode_report(data, device)
        except FormatError:
            self._unreadable += 1
            return
        self._rollout.observe(device, report)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            waiting, self._waiting, self._heard = self._waiting, {}, set()
            for device, data in waiting.items():
                self._observe(device, data)
            await self._decide()

    async def _decide(self) -> None:
        try:
            if done := self._rollout.decide():
                _LOG.warning("%s", done)
            await self._publish()
        except (SscError, OSError) as exc:
            _LOG.warning("releases: %s", exc)  # the next tick tries again

    async def _on_request(self, message: Msg) -> None:
        try:
            answer = await self._answer(decode(message.data, _RolloutRequest, "request", MAX_MESSAGE_BYTES))
        except (SscError, OSError) as exc:
            answer = {"error": str(exc)}
        await message.respond(msgspec.json.encode(answer))

    async def _answer(self, request: _RolloutRequest) -> dict[str, Any]:
        """Carry out a request. Raises UsageError, LinkError or OSError."""
        number = request.generation
        if number is not None and request.action != "list" and self._generations.get(number) is None:
            kept = ", ".join(str(generation.number) for generation in self._generations.kept())
            raise UsageError(f"generation {number} is not kept here; there are {kept}")
        if request.action == "promote":
            self._rollout.promote(number)
        elif request.action == "rollback":
            self._rollout.roll_back(number)
        elif request.action == "pin":
            self._rollout.pin(number)
        elif request.action == "unpin":
            self._rollout.unpin()
        if request.action != "list":
            _LOG.warning("%s by hand: generation %d is stable", request.action, self._rollout.wanted.stable)
            await self._publish()
        return self.status()

    @property
    def paced(self) -> str:
        """Why the next release waits for a budget; empty if it does not."""
        return self._paced or self._pace.held

    def traffic(self) -> DeviceTraffic:
        """Total traffic of all present devices, as they report it."""
        return all_together(report.traffic for report in self._rollout.last_reports().values())

    def status(self) -> dict[str, Any]:
        """Releases, newest first, why the next one is on hold or waits, and how many reports could not be read.

        `refused` is the last attempt at a release if it failed, with its reason; `unjudged` are heads that were not
        consulted.
        """
        kept = {generation.number for generation in self._generations.kept()}
        rows = [{**row, "retired": row["generation"] not in kept} for row in self._rollout.listing()]
        last = self._gate.outcomes[-1:] if self._gate else []
        return {
            "releases": rows,
            "held": self._rollout.held,
            "paced": self.paced,
            "update_mb_per_day": None if math.isinf(self._pace.per_day) else self._pace.per_day / 1e6,
            "refused": [
                {"generation": one.generation, "steps": one.steps, "reason": one.reason}
                for one in last
                if not one.released
            ],
            "unjudged": list(self._gate.head_scores.without_clips) if self._gate else [],
            "unreadable_reports": self._unreadable,
        }


async def request(hub: Hub, action: RolloutAction, generation: int | None = None) -> dict[str, Any]:
    """Send a request to a running server. Raises LinkError if none answers, UsageError if it refuses."""
    try:
        body = msgspec.json.encode(_RolloutRequest(action, generation))
        answer = await hub.client.request(RELEASES_SUBJECT, body, timeout=10.0)
    except BROKER_ERRORS as exc:
        raise hub.explained(exc, NO_SERVER) from None
    found = decode(answer.data, dict[str, Any], "the server's answer", MAX_MESSAGE_BYTES, LinkError)
    if "error" in found:
        raise UsageError(str(found["error"]))
    return found
