"""`ssc edge status`: how the device of a state directory is doing, for people or as JSON."""

from __future__ import annotations

import datetime as dt
import json
import textwrap
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from runtime_edge.base.text import moment, size
from runtime_edge.config import DeviceConfig
from runtime_edge.errors import CheckFailed, FormatError
from runtime_edge.service.status import DeviceStatus, acknowledged, problems, read_status
from runtime_edge.settings import load
from runtime_edge.transport.budgets import BudgetStatus, TrafficStatus
from runtime_edge.updates.bundle_store import BundleStore
from runtime_edge.updates.trial import Trials, UpdateLog, update_log

_UPDATES_SHOWN = 5
_COLUMNS, _INDENT = 80, 12


@click.command("status", context_settings={"auto_envvar_prefix": "SSC_EDGE"})
@click.option("--state", type=click.Path(path_type=Path), help="State directory of the device  [default: ssc-edge]")
@click.option("--config", type=click.Path(path_type=Path), help="The device's TOML file, instead of --state.")
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Print everything as JSON.")
def status_(state: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the status of this machine's device. Exits with 1 if it is unwell or not running.

    Example: ssc edge status --state /var/lib/ssc-edge
    """
    directory = load(DeviceConfig, config, {"state": state}).state
    status = read_status(directory)
    record, updates = Trials(directory).known(), update_log(directory, _UPDATES_SHOWN)
    installed = _installed(directory, record.current, None if status is None else status.encoder.bundle)
    if status is None:
        missing = "no device has run from this state directory"
        if as_json and installed is not None:
            click.echo(json.dumps({"installed": installed, "healthy": False, "problems": [missing]}, indent=2))
        elif installed is not None:
            click.echo("\n".join([f"{directory}: not started yet", *_installed_line(installed), *_updates(updates)]))
        raise CheckFailed(f"{directory}: {missing}")
    wrong = problems(directory, status)
    if as_json:
        everything = msgspec.to_builtins(status)
        everything |= {"installed": installed}
        everything |= {"healthy": not wrong, "problems": wrong}
        everything |= {"bundles": msgspec.to_builtins(record), "updates": updates.events}
        everything |= {"updates_damaged_lines": updates.damaged_lines}
        click.echo(json.dumps(everything, indent=2))
    else:
        lines = [*_lines(status, record.proven), *_installed_line(installed), *_updates(updates)]
        click.echo("\n".join([_headline(status, wrong), *lines]))
    if wrong:
        raise CheckFailed(f"{directory}: {'; '.join(wrong)}")


def _installed(directory: Path, current: str | None, running: str | None) -> dict[str, Any] | None:
    """The bundle that `ssc edge install` put there for the next start; None if there is none, or it runs already."""
    if current is None or current == running:
        return None
    try:
        bundle = BundleStore(directory, None).current()
    except FormatError as exc:
        return {"digest": current, "trouble": str(exc)}
    if bundle is None:
        return None
    info = bundle.manifest.info
    return {"digest": current, "generation": info.generation, "encoder": info.encoder.id}


def _installed_line(installed: dict[str, Any] | None) -> list[str]:
    if installed is None:
        return []
    what = installed.get("trouble") or f"generation {installed['generation']} of {installed['encoder']}"
    return [f"  {'installed':<{_INDENT - 2}}{what}, {installed['digest'][:19]}, runs from the next start on"]


def _headline(status: DeviceStatus, wrong: list[str]) -> str:
    since, written = _when(status.since), _when(status.written)
    if wrong and wrong[0].startswith("not running"):
        return f"{status.device}: {wrong[0]} (started {since}, last status {written})"
    return f"{status.device}: running since {since}" + "".join(f"; {problem}" for problem in wrong)


def _lines(status: DeviceStatus, proven: str | None) -> list[str]:
    encoder, link, spool, report, vitals = status.encoder, status.uplink, status.spool, status.report, status.health
    there, blocks = encoder.blocks
    part = f", {there} of {blocks} blocks" if there < blocks else ""
    trial = ", on trial" if encoder.on_trial else ""
    adapted = f", adapted by {digest[:19]}" if (digest := report.get("adaptation")) else ""
    previous = f", falls back to {proven[:19]}" if proven and proven != encoder.bundle else ""
    server = f"{link.broker} {'connected' if link.connected else 'away'}" if link.broker else "none"
    certainty = "unknown" if status.uncertainty is None else f"{status.uncertainty:.3f}"
    dropped = ", ".join(f"{count} {reason}" for reason, count in report["dropped"].items())
    audio = {
        "gated as silence": status.audio.gated,
        "overruns": status.audio.overruns,
        "samples missing": status.audio.dropped_samples,
        "samples beyond full scale": status.audio.clipped_samples,
        "samples not numbers": status.audio.bad_samples,
        "samples of channels that cancel each other": status.audio.cancelled_samples,
        "samples with a constant offset": status.audio.offset_samples,
        "files skipped": status.audio.files_skipped,
        "files cut short": status.audio.files_cut_short,
        "steps of the clock": status.audio.clock_steps,
        "Hz instead of the stated rate": status.audio.measured_rate_hz,
        "results dropped": status.results_dropped,
    }
    heard = ", ".join(f"{count} {what}" for what, count in audio.items() if count)
    rows = {
        "bundle": f"generation {encoder.generation}, {encoder.bundle[:19]}{part}{trial}{adapted}{previous}",
        "runs": f"{encoder.variant} on {encoder.runtime}, front end by {encoder.front_end}, table {encoder.table}",
        "server": server,
        "uplink": f"{link.bandwidth_mbps:.3g} Mbit/s, {link.rtt_ms:.0f} ms, {link.loss:.1%} unanswered",
        "now": f"cut {status.cut}, U {certainty}, processor {status.cpu:.0%}",
        **_traffic(status.traffic),
        **_waits(report.get("update_waits")),
        "windows": f"{report['windows_captured']} captured, {acknowledged(report)} acknowledged, "
        f"{report['windows_local']} kept local ({report.get('share_shipped', 1.0):.0%} shipped), "
        f"{report['windows_spooled']} spooled, {report['windows_lost']} lost, "
        f"{report.get('windows_refused', 0)} refused by the server",
        "dropped": f"{dropped or 'none'}; of earlier runs {report['inherited_dropped']}",
        "audio": heard or "complete",
        "spool": f"{spool.frames} frames, {spool.bytes / 2**20:.1f} of {spool.limit_bytes / 2**20:.1f} MiB",
        "machine": f"{vitals.rss_mb:.0f} MB, {_degrees(vitals.temperature_c)}"
        + (", throttled" if vitals.throttled else ""),
        "errors": ", ".join(f"{count} {name}" for name, count in report["errors"].items()) or "none",
    }
    lines = [f"  {name:<{_INDENT - 2}}{text}" for name, text in rows.items()]
    return lines + [f"  {'trouble':<10}{trouble.time} {trouble.message}" for trouble in status.troubles]


def _traffic(traffic: TrafficStatus) -> dict[str, str]:
    """What passes the interface, and what may still pass."""
    rows = {
        "an hour": str(traffic.hour),
        "a month": str(traffic.month),
    }
    if traffic.counted_by:
        rows["counted"] = f"by {traffic.counted_by}"
    if traffic.budget is not None:
        rows["budget"] = _left(traffic.budget)
    if traffic.held_until is not None:
        rows["held"] = f"frames are sent again from {moment(traffic.held_until)} on"
    if traffic.withheld:
        rows["withheld"] = f"{traffic.withheld} events were not published meanwhile"
    if traffic.update_budget is not None:
        rows["updates"] = _left(traffic.update_budget)
    return rows


def _left(budget: BudgetStatus) -> str:
    what = f"{size(budget.left_bytes)} left" if budget.left_bytes >= 0 else f"{size(-budget.left_bytes)} overdrawn"
    return f"{what}, {budget.mb_per_day:g} MB a day"


def _waits(waiting: dict[str, Any] | None) -> dict[str, str]:
    """The update that waits for a budget."""
    if waiting is None:
        return {}
    when = "never fits" if waiting["until"] is None else f"waits until {moment(waiting['until'])}"
    reason = textwrap.wrap(waiting["reason"], _COLUMNS - _INDENT)
    return {"update": f"\n{' ' * _INDENT}".join([f"generation {waiting['generation']} {when}", *reason])}


def _updates(log: UpdateLog) -> list[str]:
    damaged = [f"  {'update':<10}damaged lines of the log: {log.damaged_lines}"] if log.damaged_lines else []
    return [*map(_update, log.events), *damaged]


def _update(entry: dict[str, Any]) -> str:
    details = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("time", "event"))
    return f"  {'update':<10}{_when(float(entry.get('time', 0)))} {entry.get('event')}: {details}"


def _when(seconds: float) -> str:
    moment = dt.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    minutes, _ = divmod(max(0, int(time.time() - seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{moment} ({f'{hours} h ' * bool(hours)}{minutes} min ago)"


def _degrees(celsius: float | None) -> str:
    return "temperature unknown" if celsius is None else f"{celsius:.0f} °C"
