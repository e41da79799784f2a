"""A bundle and its parity as numbers for programs, and as rows for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from runtime_edge.base.text import size
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.encoder.bottleneck_info import BottleneckInfo
from runtime_edge.formats.encoder.exit_info import ExitInfo
from runtime_edge.formats.encoder.parts import Agreement
from runtime_edge.formats.encoder.privacy_info import Leak, MeasuredShare, PrivacyInfo
from runtime_edge.formats.manifest import Cut, Manifest, Parity


def bundle_summary(bundle: Bundle) -> dict[str, Any]:
    """What `--json` prints about a bundle."""
    info = bundle.manifest.info
    exact = min((name for name in info.parity if name.endswith("fp32")), default=None)
    proved = None if exact is None else info.parity[exact]
    macs = list(accumulate([0, *(_macs(bundle, block) for block in info.blocks)]))
    return {
        "bundle": str(bundle.path),
        "encoder": info.encoder.id,
        "generation": info.generation,
        "signed": (bundle.path / "manifest.json.minisig").exists(),
        "bytes": sum(bundle.manifest.assets().values()),
        "variants": sorted(next(iter(bundle.manifest.components.values())).variants),
        "adaptable": adaptable_variants(bundle.manifest),
        "parity": parity_summary(info.cuts, info.parity),
        "calibration": {"source": info.calibration.source, "windows": info.calibration.windows},
        "cuts": [
            {
                "index": cut.index,
                "name": cut.name,
                "shape": list(cut.shape),
                "bytes": cut.bytes,
                "agreement": {} if proved is None else cut.agreement,
                "macs": macs[cut.index],
                "max_abs_error": None if proved is None else proved.max_abs_error[cut.index],
                "targets": {
                    name: {
                        "ms": round(sum(cost.block_ms[: cut.index]), 3),
                        "mj": round(sum(cost.block_mj[: cut.index]), 3),
                    }
                    for name, cost in info.targets.items()
                },
            }
            for cut in info.cuts
        ],
        "bottlenecks": [
            {
                "cut": bottleneck.cut,
                "shape": list(bottleneck.shape),
                "fitted_by": bottleneck.fitted_by,
                "steps": bottleneck.steps,
                "hides": list(bottleneck.hides),
                "noise": bottleneck.noise,
                "widths": [msgspec.to_builtins(width) for width in bottleneck.widths],
            }
            for bottleneck in info.bottlenecks
        ],
        "exits": [
            {
                "cut": early.cut,
                "macs": early.macs,
                "windows": early.windows,
                "bytes": {name: file.bytes for name, file in early.files.items()},
                "agreement": msgspec.to_builtins(early.agreement),
            }
            for early in info.exits
        ],
        "privacy": None if info.privacy is None else msgspec.to_builtins(info.privacy),
    }


def adaptable_variants(manifest: Manifest) -> list[str]:
    """The variants whose normalisation layers can be adapted on a device."""
    return [name for name in manifest.variants if manifest.info.adaptable and name.startswith("onnx-")]


def useless_cuts(cuts: Sequence[Cut]) -> str | None:
    """One line when no cut between the waveform and the embedding ships less than the audio; None when one does."""
    audio, inner = 2 * cuts[0].values, cuts[1:-1]
    smallest = min(inner, key=lambda cut: cut.values, default=None)
    if smallest is not None and smallest.values < audio:
        return None
    why = "there is none" if smallest is None else f"the smallest, {smallest.name}, has {smallest.values} bytes of int8"
    return (
        f"No cut between the waveform and the embedding ships less than the audio, {audio} bytes of PCM16: {why}. "
        "Devices send audio or run the whole encoder."
    )


def parity_summary(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> dict[str, dict[str, Any]]:
    """Parity by variant and cut name: that of the prefix alone, and that of the embedding by wire encoding."""
    return {
        variant: dict(zip((cut.name for cut in cuts), msgspec.to_builtins(found.cuts), strict=True))
        for variant, found in parity.items()
    }


PARITY_COLUMNS = ("variant", "cut", "prefix alone", "float32 wire", "float16 or PCM wire", "int8 wire")


def parity_rows(cuts: Sequence[Cut], parity: Mapping[str, Parity]) -> list[list[str]]:
    """One row for each variant and cut under `PARITY_COLUMNS`: largest error, median and worst cosine."""
    rows = []
    for variant, found in parity.items():
        for cut, proved in zip(cuts, found.cuts, strict=True):
            half = proved.wire.get("float16", proved.wire.get("pcm16"))
            measured = (proved.prefix, proved.wire.get("float32"), half, proved.wire.get("int8"))
            rows.append([variant, cut.name, *(_numbers(item) for item in measured)])
    return rows


WIDTH_COLUMNS = ("cut", "width", "values", "bytes", "99th percentile", "median cosine behind")


def width_rows(bottlenecks: Sequence[BottleneckInfo]) -> list[list[str]]:
    """One row for each cut and width under `WIDTH_COLUMNS`, for the variants of one format; others are as close."""
    rows = []
    for bottleneck in bottlenecks:
        for width in bottleneck.widths:
            sizes = (width.width, width.width * bottleneck.positions, width.bytes, width.bytes_p99)
            rows.append([bottleneck.cut, *map(str, sizes), _near(width.wire)])
    return rows


EXIT_COLUMNS = ("cut", "MMACs", "fitted to", "bytes", "median cosine behind")


def exit_rows(exits: Sequence[ExitInfo]) -> list[list[str]]:
    """One row for each cut under `EXIT_COLUMNS`, for the variants of one format; others are as close."""
    rows = []
    for early in exits:
        near = _near(early.agreement)
        bytes_of = next(iter(early.files.values())).bytes
        rows.append([early.cut, f"{early.macs / 1e6:.3g}", f"{early.windows} windows", size(bytes_of), near])
    return rows


PRIVACY_COLUMNS = ("payload", "as", "words recognised", "speakers recognised", "image error", "STOI")


def privacy_title(found: PrivacyInfo) -> str:
    """What an audit's rows are shares of."""
    people = f", speakers of {found.speakers} (chance {100 / found.speakers:.0f} %)" if found.speakers else ""
    known = "" if found.members is None else f"; AUROC of which recordings trained the weights {found.members.rate:.2f}"
    return (
        f"what payloads give away: words of {found.words} (chance {100 / found.words:.0f} %){people}, in "
        f"{found.recordings} recordings of people never heard before{known}"
    )


def privacy_rows(found: PrivacyInfo) -> list[list[str]]:
    """One row under `PRIVACY_COLUMNS` for each payload that may be shipped, and for each exit's embedding."""
    named = [(_payload(leak), leak) for leak in found.shipped] + [(f"{leak.cut}+exit", leak) for leak in found.exits]
    return [
        [
            name,
            leak.encoding,
            _share(leak.words),
            "-" if leak.speakers is None else _share(leak.speakers),
            "-" if leak.image_error is None else f"{leak.image_error:.2f}",
            "-" if leak.intelligibility is None else f"{leak.intelligibility:.2f}",
        ]
        for name, leak in named
    ]


def privacy_range(found: PrivacyInfo) -> str:
    """One line: which payloads give away the fewest and the most words."""
    least, most = (chosen(found.shipped, key=lambda leak: leak.words.rate) for chosen in (min, max))
    return (
        f"words recognisable in what it ships: from {_share(least.words)} in {_payload(least)} to {_share(most.words)} "
        f"in {_payload(most)}, of {found.words}, chance {100 / found.words:.0f} % (`ssc inspect`)"
    )


def _payload(leak: Leak) -> str:
    return f"{leak.cut}/{leak.width}" if leak.width else leak.cut


def _share(rate: MeasuredShare) -> str:
    return f"{100 * rate.rate:.0f} % ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


def _near(agreement: Mapping[str, Agreement]) -> str:
    """Median cosines after the prefixes of one format's variants."""
    one = min(agreement).partition("-")[0]
    return ", ".join(f"{name} {found.cosine_median:.4f}" for name, found in agreement.items() if name.startswith(one))


def _numbers(agreement: Agreement | None) -> str:
    if agreement is None:
        return ""
    return f"{agreement.max_abs_error:.0e} {agreement.cosine_median:.5f} {agreement.cosine_worst:.5f}"


def _macs(bundle: Bundle, block: str) -> int:
    return bundle.manifest.components[block].additional_metadata.ssc.macs
