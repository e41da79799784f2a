"""Measures accuracy after a bottleneck against bytes per window, over all folds of labelled recordings.

    python -m tools.bench_bottlenecks encoder.pt features.7 --audio recordings/ [--data esc10] [--steps 1000] [--alone]

For each fold the bottleneck is fitted to the windows of the other folds' recordings, which also train a linear head on
the whole encoder's embeddings. The fold's own windows then go through bottleneck, coding and suffix to that head. With
`--alone` each width is also trained on its own, to compare the bytes of the nested bottleneck at the same cosine.
`--publish mn04` puts the fewest bytes that lose at most a point into docs/benchmarks.* under that name.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from runtime_edge.formats.codec import channel_axis
from runtime_edge.formats.latent_codec import LatentCodec, quantise
from runtime_edge.formats.manifest import Cut, Int8Scale
from runtime_server.lab.clips import load_clips
from streamsplit_compile.bottleneck.block import Bottleneck, layout_of
from streamsplit_compile.bottleneck.coding import coding_tables
from streamsplit_compile.bundle.cut_assets.bottlenecks import Fitted, fit, widths_of
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.segment import run_segments, split
from tools.bench_pay import MOST_LOST
from tools.benchmarks import Section, publish
from tools.judged_clips import interval

Array = npt.NDArray[np.float32]


def main() -> None:
    """Print one line for each width: bytes, cosine, accuracy by clip and its difference from the whole encoder's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("cut")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--data", default="esc10")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="Train each width by itself, too.")
    parser.add_argument("--fold", type=int, help="Judge on this fold alone.")
    parser.add_argument("--publish", metavar="NAME", help="Of the encoder, in docs/benchmarks.*.")
    given = parser.parse_args()
    encoder, clips = load_encoder(given.encoder), load_clips(given.audio, given.data)
    names = [candidate.name for candidate in encoder.graph.candidates]
    chosen = encoder.graph.candidates[names.index(given.cut)]
    segments = split(encoder.graph, [encoder.graph.candidates[0], chosen, encoder.graph.candidates[-1]])
    cut = cut_of(given.cut, chosen.node, chosen.shape)
    windows = clips.windows(encoder.window_samples, encoder.window_samples // 2)
    with torch.inference_mode():
        activations = torch.stack([run_segments(segments[:1], torch.from_numpy(clip.copy())) for clip in windows])
        whole = torch.stack([run_segments(segments[1:], clip) for clip in activations]).numpy()
    found = Found(given.cut)
    alone: dict[int, Found] = {}
    for fold in np.unique(clips.folds) if given.fold is None else [given.fold]:
        train, test = clips.folds != fold, clips.folds == fold
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        head.fit(whole[train].mean(1), clips.labels[train])
        seen, heard = (activations[torch.from_numpy(chosen)] for chosen in (train, test))
        data = Fitted(seen.flatten(0, 1), torch.from_numpy(whole[train]).flatten(0, 1), segments[1:])
        block = _trained(cut, data, given.steps, None)
        found.add(head, clips.labels[test], whole[test], _through(block, data, heard, None))
        print(f"fold {fold}: done", flush=True)
        for width in widths_of(block)[:-1] if given.alone else ():
            one = _trained(cut, data, given.steps, width)
            into = alone.setdefault(width, Found(given.cut))
            into.add(head, clips.labels[test], whole[test], _through(one, data, heard, width))
            print(f"fold {fold}: width {width} alone: done", flush=True)
    found.tell()
    if given.publish:
        command = f"python -m tools.bench_bottlenecks {given.publish}.pt {given.cut} --audio ... --steps {given.steps}"
        publish(found.section(given.publish, command))
    for width, one in alone.items():
        one.tell()
        print(f"width {width:3d}: nested takes {nested_share(found, one, width):.3f} of the bytes for the same cosine")


def _trained(cut: Cut, data: Fitted, steps: int, width: int | None) -> Bottleneck:
    """Train the bottleneck for all widths at once, or for one width alone."""
    with tempfile.TemporaryDirectory() as checkpoints:
        return fit(cut, data, steps, 0, Path(checkpoints), widths=None if width is None else [width])


class Found:
    """The results for each width, over folds."""

    def __init__(self, cut: str) -> None:
        self.cut = cut
        self.plain: list[npt.NDArray[np.bool_]] = []
        """Which clips get the right label from the whole encoder's embeddings."""
        self.right: dict[int, list[npt.NDArray[np.bool_]]] = {}
        self.sizes: dict[int, list[float]] = {}
        self.cosines: dict[int, list[float]] = {}

    def add(
        self,
        head: Any,
        labels: npt.NDArray[np.int64],
        whole: Array,
        through: Iterable[tuple[int, Array, list[int]]],
    ) -> None:
        """Add the clips of a fold, by the encoder's embeddings (clips, windows, d) and by those of each width."""
        self.plain.append(head.predict(whole.mean(1)) == labels)
        for width, embeddings, sizes in through:
            self.right.setdefault(width, []).append(head.predict(embeddings.mean(1)) == labels)
            self.sizes.setdefault(width, []).extend(sizes)
            self.cosines.setdefault(width, []).extend((embeddings * whole).sum(-1).ravel().tolist())

    def of_width(self, width: int) -> tuple[float, str]:
        """Points of accuracy that a width loses, and all about it in words."""
        plain, right, sizes = np.concatenate(self.plain), np.concatenate(self.right[width]), self.sizes[width]
        lost, (low, high) = round(100 * float(plain.mean() - right.mean()), 6), interval(plain, right)
        said = (
            f"{self.cut}/{width}: {np.mean(sizes):.0f} bytes, median {np.median(sizes):.0f}, 99 % within "
            f"{np.percentile(sizes, 99):.0f}; median cosine {np.median(self.cosines[width]):.4f}; accuracy "
            f"{right.mean():.4f}, points lost {lost:.2f} ({low:.2f} to {high:.2f})"
        )
        return lost, said

    @property
    def whole(self) -> str:
        """The accuracy of the whole encoder in words."""
        plain = np.concatenate(self.plain)
        return f"whole encoder {plain.mean():.4f} of {len(plain)} clips"

    def tell(self) -> None:
        """Print a line for each width."""
        print(f"{self.cut}: {self.whole}")
        for width in self.right:
            print(self.of_width(width)[1])

    def section(self, name: str, command: str) -> Section:
        """The fewest bytes that lose at most MOST_LOST points, and every width."""
        made = Section("pay", f"Bytes after a bottleneck: {name}, all folds of ESC-10", command, f"bottleneck.{name}")
        good = [width for width in self.right if self.of_width(width)[0] <= MOST_LOST]
        if good:
            least = min(good, key=lambda width: float(np.mean(self.sizes[width])))
            what = f"bytes a window: {self.of_width(least)[1]}; {self.whole}"
            made.add(f"bytes_equal_accuracy.{name}", float(np.mean(self.sizes[least])), "at most 340", what)
        for width in self.right:
            made.detail(f"width {width}", self.of_width(width)[1])
        return made


def nested_share(nested: Found, alone: Found, width: int) -> float:
    """Bytes of the nested bottleneck over those of a width trained alone, at the same cosine.

    Between and beyond the nested one's widths, log(bytes) is taken as piecewise linear in log(1 - cosine); a cosine
    that the nested one never reaches is extrapolated from the two widest.
    """
    missing = np.array([1 - np.median(found) for found in nested.cosines.values()])
    sizes = np.array([np.mean(found) for found in nested.sizes.values()])
    order = np.argsort(missing)
    x, y = np.log(missing[order]), np.log(sizes[order])
    wanted = float(np.log(1 - np.median(alone.cosines[width])))
    near = int(np.clip(np.searchsorted(x, wanted), 1, len(x) - 1))
    slope = (y[near] - y[near - 1]) / (x[near] - x[near - 1])
    return float(np.exp(y[near - 1] + slope * (wanted - x[near - 1])) / np.mean(alone.sizes[width]))


def cut_of(name: str, node: str, shape: tuple[int, ...]) -> Cut:
    scale = Int8Scale(axis=channel_axis(shape), scale=b"", zero_point=b"")
    cut = Cut(index=1, name=name, node=node, shape=shape, bytes={}, agreement={}, int8=scale)
    if layout_of(cut) is None:
        raise SystemExit(f"{name}: its activation {list(shape)} can have no bottleneck")
    return cut


def _through(
    block: Bottleneck, data: Fitted, heard: torch.Tensor, only: int | None
) -> Iterator[tuple[int, Array, list[int]]]:
    """For each width, or only one, the embeddings (clips, windows, d) of activations (clips, windows, ...), with the
    bytes of each window.
    """
    with torch.inference_mode():
        codec = LatentCodec(coding_tables(quantise(_encoded(block, data.activations))), block.latent_shape)
        latents = _encoded(block, heard.flatten(0, 1))
        for width in widths_of(block) if only is None else [only]:
            sent = [codec.encode(latent[None], width) for latent in latents]
            arrived = np.concatenate([codec.decode(*payload, width) for payload in sent])
            parts = torch.split(torch.from_numpy(arrived), 64)
            found = torch.cat([run_segments(data.suffix, block.decode(part)) for part in parts]).numpy()
            yield width, found.reshape(*heard.shape[:2], -1), [len(payload) for payload, _ in sent]


def _encoded(block: Bottleneck, activations: torch.Tensor) -> Array:
    latents: Array = torch.cat([block.encode(part) for part in torch.split(activations, 64)]).numpy()
    return latents


if __name__ == "__main__":
    main()
