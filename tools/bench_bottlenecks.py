"""Accuracy behind a bottleneck by bytes a window, over all folds of labelled recordings.

    python -m tools.bench_bottlenecks encoder.pt features.7 --audio recordings/ [--data esc10] [--steps 1000]

For each fold the bottleneck is fitted to the windows of the other folds' recordings, which also train a linear head on
embeddings of the whole encoder. The fold's own windows then go through bottleneck, coding and suffix to that head.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

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

Array = npt.NDArray[np.float32]
_DRAWS = 2000
"""Of the bootstrap."""


def main() -> None:
    """Print one line for each width: bytes, cosine, accuracy by clip and its difference to the whole encoder's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("cut")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--data", default="esc10")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--width", type=int, help="Train this one alone.")
    parser.add_argument("--fold", type=int, help="Judge on this fold alone.")
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
    right: dict[int, list[Array]] = {}
    sizes: dict[int, list[float]] = {}
    cosines: dict[int, list[float]] = {}
    for fold in np.unique(clips.folds) if given.fold is None else [given.fold]:
        train, test = clips.folds != fold, clips.folds == fold
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        head.fit(whole[train].mean(1), clips.labels[train])
        right.setdefault(0, []).append(head.predict(whole[test].mean(1)) == clips.labels[test])
        seen = activations[torch.from_numpy(train)].flatten(0, 1)
        with tempfile.TemporaryDirectory() as checkpoints:
            fitted = Fitted(seen, torch.from_numpy(whole[train]).flatten(0, 1), segments[1:])
            widths = None if given.width is None else [given.width]
            block = fit(cut, fitted, given.steps, 0, Path(checkpoints), lambda done, total: None, widths)
        heard = activations[torch.from_numpy(test)]
        for width, embeddings, found in _through(block, seen, heard, segments[1:], widths):
            right.setdefault(width, []).append(head.predict(embeddings.mean(1)) == clips.labels[test])
            sizes.setdefault(width, []).extend(found)
            cosines.setdefault(width, []).extend((embeddings * whole[test]).sum(-1).ravel().tolist())
        print(f"fold {fold}: done", flush=True)
    plain = np.concatenate(right.pop(0))
    print(f"{given.cut}: whole encoder {plain.mean():.4f} of {len(plain)} clips")
    for width, found in right.items():
        low, high = interval(plain, np.concatenate(found))
        print(
            f"width {width:3d}: bytes {np.mean(sizes[width]):.0f} median {np.median(sizes[width]):.0f} "
            f"p99 {np.percentile(sizes[width], 99):.0f}  cosine {np.median(cosines[width]):.4f}  "
            f"accuracy {np.concatenate(found).mean():.4f}  points lost "
            f"{100 * (plain.mean() - np.concatenate(found).mean()):.2f} [{low:.2f}, {high:.2f}]"
        )


def cut_of(name: str, node: str, shape: tuple[int, ...]) -> Cut:
    scale = Int8Scale(axis=channel_axis(shape), scale=b"", zero_point=b"")
    cut = Cut(index=1, name=name, node=node, shape=shape, bytes={}, agreement={}, int8=scale)
    if layout_of(cut) is None:
        raise SystemExit(f"{name}: its activation {list(shape)} can have no bottleneck")
    return cut


def _through(
    block: Bottleneck,
    seen: torch.Tensor,
    heard: torch.Tensor,
    suffix: list[torch.fx.GraphModule],
    only: list[int] | None,
) -> Iterator[tuple[int, Array, list[int]]]:
    """For each width the embeddings (clips, windows, d) of activations (clips, windows, ...), and each one's bytes."""
    with torch.inference_mode():
        codec = LatentCodec(coding_tables(quantise(_encoded(block, seen))), block.latent_shape)
        latents = _encoded(block, heard.flatten(0, 1))
        for width in only or widths_of(block):
            sent = [codec.encode(latent[None], width) for latent in latents]
            arrived = np.concatenate([codec.decode(*payload, width) for payload in sent])
            parts = torch.split(torch.from_numpy(arrived), 64)
            found = torch.cat([run_segments(suffix, block.decode(part)) for part in parts]).numpy()
            yield width, found.reshape(*heard.shape[:2], -1), [len(payload) for payload, _ in sent]


def _encoded(block: Bottleneck, activations: torch.Tensor) -> Array:
    latents: Array = torch.cat([block.encode(part) for part in torch.split(activations, 64)]).numpy()
    return latents


def interval(plain: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the points lost, by a paired bootstrap over clips."""
    lost = 100.0 * (plain.astype(float) - found.astype(float))
    random = np.random.default_rng(0)
    draws = [lost[random.integers(0, len(lost), len(lost))].mean() for _ in range(_DRAWS)]
    return float(np.percentile(draws, 2.5)), float(np.percentile(draws, 97.5))


if __name__ == "__main__":
    main()
