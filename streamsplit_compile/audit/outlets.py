"""What leaves a device, as it arrives elsewhere: activations and latents after the wire, and exits' embeddings.

    for outlet in outlets_of(bundle, encodings=("int8",)):
        arrived = collector.arrived(outlet)         # of every window, decoded

Attackers know the encoder, and may run its remaining blocks on what arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import Bundle
from runtime_edge.formats.codec import ENCODINGS, CutCodec
from runtime_edge.formats.manifest import Cut
from runtime_edge.inference.cut_assets.bottleneck import LoadedBottleneck
from runtime_edge.inference.cut_assets.early_exit import LoadedExit
from runtime_edge.inference.prefix import Prefix
from streamsplit_compile.bottleneck.block import Bottleneck, read_bottleneck
from streamsplit_compile.bundle.compiler import bundle_variants

Array = npt.NDArray[np.float32]
_BATCH = 64
_Maker = Callable[[], Array]
"""Gives something of the activation that a prefix has reached."""


@dataclass(frozen=True)
class Outlet:
    """One kind of what leaves a device."""

    what: Literal["shipped", "exit"]
    cut: str
    encoding: str
    width: int = 0
    """Channels of the cut's bottleneck; 0 for the plain activation and for an exit."""

    @property
    def name(self) -> str:
        """As a splitter's action is called."""
        place = f"{self.cut}/{self.width}" if self.width else self.cut
        return f"{place}+exit" if self.what == "exit" else place


@dataclass(frozen=True)
class Arrived:
    """What an attacker has of every window."""

    values: Array
    """(windows, channels, rows, columns): what was shipped, decoded."""
    embeddings: Array
    """(windows, d): what the encoder's remaining blocks make of it."""


def outlets_of(bundle: Bundle, encodings: Sequence[str]) -> list[Outlet]:
    """Everything that a device may ship of a bundle: each cut in these encodings, each width, each exit's embedding.

    The waveform is shipped as 16-bit samples. Raises UsageError for an encoding that activations are not shipped in.
    """
    info, found = bundle.manifest.info, list[Outlet]()
    if wrong := [name for name in encodings if name not in ENCODINGS[:3]]:
        raise UsageError(f"--encodings {wrong[0]}: activations are shipped as {', '.join(ENCODINGS[:3])}")
    for cut in info.cuts:
        plain = encodings if cut.index else ("pcm16",)
        found += [Outlet("shipped", cut.name, encoding) for encoding in plain]
        widths = sorted(bundle.manifest.widths.get(cut.name, ()), reverse=True)
        found += [Outlet("shipped", cut.name, "int8", width) for width in widths]
    return found + [Outlet("exit", early.cut, "float32") for early in info.exits]


class Collector:
    """Runs windows (windows, samples) through a bundle's float32 blocks, the wire and its decoders.

    The activations of one cut are kept at a time, so ask for the outlets of a cut together. Raises BundleError.
    """

    def __init__(self, bundle: Bundle, windows: Array) -> None:
        self._windows, self._bundle = windows, bundle
        variant = next((name for name in bundle_variants(bundle.manifest) if name.endswith("fp32")), None)
        if variant is None:
            raise UsageError(f"{bundle.path}: has no float32 blocks, only {', '.join(bundle.manifest.variants)}")
        self._prefix = Prefix(bundle, variant)
        self._held: tuple[object, Array] | None = None
        self._images: Array | None = None
        self._latest: tuple[Outlet, Arrived] | None = None

    def arrived(self, outlet: Outlet) -> Arrived:
        """What arrives of every window; asked twice in a row for the same, it is at hand."""
        if self._latest is None or self._latest[0] != outlet:
            self._latest = None
            self._latest = outlet, self._arriving(outlet)
        return self._latest[1]

    def _arriving(self, outlet: Outlet) -> Arrived:
        cut = self._bundle.manifest.cut_named(outlet.cut)
        if outlet.what == "exit":
            embeddings = self._kept(("exit", cut.name), cut, self._exit(outlet.cut))
            return Arrived(embeddings[:, :, None, None], embeddings)
        if outlet.width:
            bottleneck = self._bottleneck(outlet.cut)
            values = self._kept(("latent", cut.name), cut, _latent_of(bottleneck)).copy()
            values[:, outlet.width :] = 0.0
            activations = self._restored(cut, values)
            return Arrived(values[:, : outlet.width], self._completed(cut, activations))
        codec = CutCodec(cut, outlet.encoding)
        plain = self._kept(("plain", cut.name), cut, None)
        activations = np.concatenate([codec.decode(*codec.encode(one[None])) for one in plain])
        return Arrived(self._image(cut, activations), self._completed(cut, activations))

    def images(self) -> Array:
        """The log-mel images (windows, mels, frames) of the windows; the encoder's first block must make one."""
        if self._images is None:
            found = []
            for window in self._windows:
                self._prefix.start(window)
                found.append(self._prefix.advance(1)[0, 0].copy())
            self._images = np.stack(found)
        return self._images

    def _kept(self, key: object, cut: Cut, made: _Maker | None) -> Array:
        """What `made` gives of each window's activation at a cut, (windows, ...); the activation itself if None."""
        if self._held is None or self._held[0] != key:
            self._held = None
            found = []
            for window in self._windows:
                self._prefix.start(window)
                activation = self._prefix.advance(cut.index)
                found.append(activation[0].copy() if made is None else made())
            self._held = key, np.stack(found)
        return self._held[1]

    def _exit(self, cut: str) -> _Maker:
        (info,) = (early for early in self._bundle.manifest.info.exits if early.cut == cut)
        return LoadedExit(self._prefix, info).embedding

    def _bottleneck(self, cut: str) -> LoadedBottleneck:
        info = self._bundle.manifest.bottleneck(cut)
        assert info is not None, "outlets have the widths that there are"
        return LoadedBottleneck(self._prefix, info)

    def _restored(self, cut: Cut, latents: Array) -> Array:
        """Activations (windows, ...) that a server's decoder makes of latents (windows, channels, rows, columns)."""
        info = self._bundle.manifest.bottleneck(cut.name)
        assert info is not None
        block: Bottleneck = read_bottleneck(self._bundle.read(info.decoder.file), cut, str(self._bundle.path))
        with torch.inference_mode():
            parts = torch.split(torch.from_numpy(latents), _BATCH)
            return np.asarray(torch.cat([block.decode(part) for part in parts]).numpy())

    def _completed(self, cut: Cut, activations: Array) -> Array:
        """Embeddings (windows, d) of activations (windows, ...) at a cut."""
        found = []
        for activation in activations:
            self._prefix.resume(cut.index, activation[None])
            found.append(self._prefix.advance(self._prefix.last_cut)[0].copy())
        embeddings: Array = np.nan_to_num(np.stack(found))
        return embeddings

    def _image(self, cut: Cut, activations: Array) -> Array:
        """Activations (windows, ...) as images; a waveform as what the first block makes of it."""
        if cut.index == 0:
            found = []
            for activation in activations:
                self._prefix.resume(0, activation[None])
                found.append(self._prefix.advance(1)[0].copy())
            activations = np.stack(found)
        return as_images(activations)


def _latent_of(bottleneck: LoadedBottleneck) -> _Maker:
    """Gives the latent of the activation, coded for the wire at full width and decoded again."""
    width = bottleneck.info.shape[1]

    def made() -> Array:
        latent: Array = bottleneck.codec.decode(*bottleneck.encode(width), width)[0]
        return latent

    return made


def as_images(values: Array) -> Array:
    """Values (windows, ...) as (windows, channels, rows, columns): a sequence has one channel, a vector no extent."""
    shape = values.shape[1:]
    if len(shape) == 1:
        return values[:, :, None, None]
    return values.reshape(len(values), -1, *shape[-2:])
