"""The distributional memory: what a device has heard, as a small Gaussian mixture (docs/method.md, section 4).

    memory = GaussianMemory(components=64, dim=128)
    uncertainty = memory.update(embedding)      # [0, 1]; 1.0 while cold
    memory.load_parameters(reply_bytes)         # lazy synchronisation from the server
    memory.to_bytes()                           # 2·(2·C·d) + 2·C bytes: 32 896 for the defaults

Our choices where the method leaves them open:

* Start. Components begin vacant: seeded random unit directions, equal weights, the variance 1/d of the
  uniform law on the sphere. A window farther than half the mean squared distance between windows from
  every component claims the lightest one (the replacement rule of Stauffer and Grimson, 1999), so a new
  sound has a component after one window, at the cost of a vacant or forgotten one. The claimed mean
  is a draw around the window, never the window itself: the memory holds no raw embedding.
* Step. A component moves by the fraction `rate · r_c(z)`: by `rate` with full responsibility, not at all
  with none. The fixed points are those of EM. A batch gives the same as its rows in order, to the bit.
* Resolution. In 128 dimensions the posterior of any mixture with learned variances is one-hot and its
  entropy zero, whether the sound is known or not. The uncertainty is therefore the entropy of the posterior
  of `z` seen through isotropic noise of variance `resolution · D² / (4 ln C)`, with D² the mean squared
  distance between windows: one component at the window and the others at distance D weigh C² : 1. Learning
  uses the plain posterior. `resolution=0` is the plain entropy.
* Cold. The first 50 windows return 1.0. Loaded parameters count as warm.
* Wire. float16 little-endian: weights [C], means [C, d], then standard deviations [C, d] instead of
  variances: the floor 1e-6 is subnormal in float16 (rounded by up to 3 %), its root 1e-3 is not (0.05 %).
  Weights never fall below 1e-3, which float16 can hold and which lets a forgotten component come back.

Not thread-safe; one device, one memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime_edge.errors import FormatError, FrameError, UsageError
from runtime_edge.formats.mixture import decode_components

Array = npt.NDArray[np.float32]

COMPONENTS = 64
COLD_WINDOWS = 50
VARIANCE_FLOOR = 1e-6
VARIANCE_CEILING = 4.0
"""No coordinate of unit vectors can vary more; loaded parameters are limited to it."""
WEIGHT_FLOOR = 1e-3
NEGATIVE_SCALE = 0.1
"""tau of the virtual negatives (docs/method.md, section 4)."""

_NOVEL = 0.5  # of D²: farther from every component than this claims one
_NARROW = 0.25  # of the overall variance: what a newly claimed component covers
_MIN_SPREAD = 0.01  # of D²: embeddings closer than this (about 6 degrees) are one sound
_MIN_NORM = 1e-6  # shorter vectors have no direction
_MEAN_SLACK = 1.01  # means of unit vectors are no longer than 1, float16 rounding aside
_ARRAYS = ("weights", "means", "variances", "_average")  # what is learnt
_MAX_COMPONENTS, _MAX_DIM = 512, 65536  # 512 weights of at least 1e-3 leave room to differ


class GaussianMemory:
    """A streaming mixture of `components` diagonal Gaussians over unit embeddings of width `dim`.

    Attributes: `weights` float32[C], `means` float32[C, d], `variances` float32[C, d] (read, do not
    write), `windows` accepted so far, `rejected` embeddings that were not finite or had no direction.
    """

    def __init__(
        self,
        components: int = COMPONENTS,
        dim: int = 128,
        rate: float = 0.01,
        seed: int = 0,
        resolution: float = 1.0,
        room: Array | None = None,
    ) -> None:
        """Memories used by one thread may share their `room`, float32[2, C, d], so that it stays in the cache."""
        if not (2 <= components <= _MAX_COMPONENTS and 1 <= dim <= _MAX_DIM):
            raise UsageError(f"memory: {components} components of width {dim}, need at least 2 of at least 1")
        if not (0 < rate < 1 and 0 <= resolution < math.inf):
            raise UsageError(f"memory: rate {rate} must be in (0, 1) and resolution {resolution} >= 0")
        self.components, self.dim, self.rate, self.resolution = components, dim, rate, resolution
        self.windows = 0
        self.rejected = 0
        self._rng = np.random.default_rng(seed)
        self.means = _unit(self._rng.standard_normal((components, dim)).astype(np.float32))
        self.variances = np.full((components, dim), 1 / dim, np.float32)
        self.weights = np.full(components, 1 / components, np.float32)
        self._average = np.zeros(dim, np.float32)  # running mean of the embeddings
        self.spread = _spread(self._average)
        """D², the mean squared distance between two windows."""
        # Squared distances of the current window to every mean, and working space: small enough to stay in the cache.
        self._squares, self._scratch = np.empty((2, components, dim), np.float32) if room is None else room
        # A product with ones is a sum, and faster, above all when numpy's code has to be fetched from memory first.
        self._ones, self._each = np.ones(dim, np.float32), np.ones(components, np.float32)
        self._minus_halves = np.full(dim, -0.5, np.float32)
        self._peaks = self._log_peaks(self.variances)  # kept like the variances: few change with a window
        self._log_weights = np.log(self.weights)

    @property
    def cold(self) -> bool:
        """Whether the memory has seen too little to know what is unusual."""
        return self.windows < COLD_WINDOWS

    def update(self, embedding: npt.ArrayLike) -> float:
        """Learn from float32[d] or [n, d] embeddings; returns their mean uncertainty before learning, in [0, 1].

        An embedding is normalised first. One that is not finite or has no direction is counted in
        `rejected` and otherwise ignored; 1.0 if none is left. Raises UsageError on another width.
        """
        total, count = 0.0, 0
        for row in self._rows(embedding):
            z = _direction(row)
            if z is None:
                self.rejected += 1
                continue
            self._measure(z)
            total += 1.0 if self.cold else self._entropy(*self._odds(self._noise))
            self._learn(z)
            count += 1
        return total / count if count else 1.0

    def learn(self, embedding: npt.ArrayLike) -> None:
        """`update` for callers that need no uncertainty: it leaves the same mixture in less time."""
        for row in self._rows(embedding):
            z = _direction(row)
            if z is None:
                self.rejected += 1
                continue
            self._measure(z)
            self._learn(z)

    def uncertainty(self, embedding: npt.ArrayLike) -> float:
        """`H(r(z)) / ln C` in [0, 1] of float32[d], or its mean over [n, d], without learning.

        1.0 while cold and for what `update` would reject.
        """
        rows = [z for row in self._rows(embedding) if (z := _direction(row)) is not None]
        if self.cold or not rows:
            return 1.0
        total = 0.0
        for z in rows:
            self._measure(z)
            total += self._entropy(*self._odds(self._noise))
        return total / len(rows)

    def judge(self, embedding: npt.ArrayLike) -> tuple[float, float]:
        """Uncertainty of one float32[d], and novelty: its squared distance to the nearest component as a share of that
        between two windows. Learns nothing; both are 1.0 while cold or without a direction.
        """
        z = _direction(self._rows(embedding)[0])
        if z is None or self.cold:
            return 1.0, 1.0
        self._measure(z)
        return self._entropy(*self._odds(self._noise)), float((self._squares @ self._ones).min()) / self.spread

    def sample_negatives(self, anchor: npt.ArrayLike, count: int, rng: np.random.Generator) -> Array:
        """Virtual negatives, [d] -> unit float32[count, d], or [n, d] -> [n, count, d].

        With `c* = argmax r(anchor)`, components `c != c*` are drawn in proportion to
        `pi_c · exp(-||mu_c* - mu_c||² / (2 tau²))`, and one sample from each draw is normalised.
        """
        batches = [self._negatives(z, count, rng) for z in self._usable(anchor)]
        return np.stack(batches) if np.ndim(anchor) == 2 else batches[0]

    def to_bytes(self) -> bytes:
        """The parameters alone: exactly `parameter_bytes(C, d)` bytes, float16 (see the module)."""
        parts = (self.weights, self.means, np.sqrt(self.variances))
        return b"".join(part.astype("<f2").tobytes() for part in parts)

    def load_parameters(self, data: bytes) -> None:
        """Replace the mixture by one that the server refined (lazy synchronisation); the memory is warm afterwards.

        Raises FrameError, and leaves the memory as it was, for a wrong length or a value that no mixture of
        unit vectors can have. Weights are renormalised and variances floored.
        """
        count, dim = self.components, self.dim
        expected = parameter_bytes(count, dim)
        if len(data) != expected:
            raise FrameError(
                f"mixture parameters: {len(data)} bytes, {count} components of width {dim} take {expected}"
            )
        values = np.frombuffer(data, "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise FrameError("mixture parameters: a value is not finite; discard them and ask again")
        weights, means, deviations = np.split(values, [count, count + count * dim])
        means, deviations = means.reshape(count, dim), deviations.reshape(count, dim)
        if not (weights > 0).all():
            raise FrameError(f"mixture parameters: weight {weights.min():g} is not positive")
        if not (deviations >= 0).all():
            raise FrameError(f"mixture parameters: standard deviation {deviations.min():g} is negative")
        longest = float(np.linalg.norm(means, axis=1).max())
        if longest > _MEAN_SLACK:
            raise FrameError(f"mixture parameters: a mean of norm {longest:g}, unit embeddings allow 1")
        self._weigh(weights / weights.sum())
        self.means = means.copy()
        self.variances = np.clip(deviations**2, np.float32(VARIANCE_FLOOR), np.float32(VARIANCE_CEILING))
        self._peaks = self._log_peaks(self.variances)
        self._average = self.weights @ self.means
        self.spread = _spread(self._average)
        self.windows = max(self.windows, COLD_WINDOWS)

    def load(self, data: bytes) -> None:
        """Load a reply's mixture parameters: all components, or some. Raises FrameError."""
        whole = len(data) == parameter_bytes(self.components, self.dim)
        (self.load_parameters if whole else self.load_components)(data)

    def load_components(self, data: bytes) -> None:
        """Replace some components by those the server refined (`runtime_edge.formats.mixture`). Raises FrameError."""
        places, weights, means, deviations = decode_components(data, self.components, self.dim)
        if float(np.linalg.norm(means, axis=1).max()) > _MEAN_SLACK:
            raise FrameError("components of a mixture: a mean is longer than unit embeddings allow")
        self.means[places] = means
        self.variances[places] = np.clip(deviations**2, np.float32(VARIANCE_FLOOR), np.float32(VARIANCE_CEILING))
        self._peaks[places] = self._log_peaks(self.variances[places])
        changed = self.weights.copy()
        changed[places] = weights
        self._weigh(changed / changed.sum())

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to continue to the bit: float32 arrays by name, and counts as JSON values."""
        arrays = {name: getattr(self, name).copy() for name in _ARRAYS}
        return {**arrays, "windows": self.windows, "rejected": self.rejected, "rng": self._rng.bit_generator.state}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of a memory of the same size. Raises FormatError, and then changes nothing."""
        try:
            arrays = {name: np.array(state[name], np.float32) for name in _ARRAYS}
            shapes = {name: (array.shape, getattr(self, name).shape) for name, array in arrays.items()}
            if any(found != own for found, own in shapes.values()):
                raise ValueError(f"its arrays are {shapes}")
            windows, rejected = int(state["windows"]), int(state["rejected"])
            rng = np.random.default_rng()
            rng.bit_generator.state = state["rng"]
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise FormatError(f"state of a memory: {exc}") from None
        for name, array in arrays.items():
            setattr(self, name, array)
        self._peaks, self._log_weights = self._log_peaks(self.variances), np.log(self.weights)
        self.spread = _spread(self._average)
        self.windows, self.rejected, self._rng = windows, rejected, rng

    def _rows(self, embedding: npt.ArrayLike) -> Array:
        if isinstance(embedding, np.ndarray) and embedding.dtype == np.float32 and embedding.shape == (self.dim,):
            return embedding[None]
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, and is rejected as such
            rows = np.atleast_2d(np.asarray(embedding, np.float32))
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UsageError(f"memory: embedding of shape {np.shape(embedding)}, width {self.dim} expected")
        return rows

    def _usable(self, embedding: npt.ArrayLike) -> list[Array]:
        given = self._rows(embedding)
        rows = [z for row in given if (z := _direction(row)) is not None]
        if len(rows) != len(given) or not rows:
            raise UsageError("memory: an embedding is empty, zero or not finite")
        return rows

    def _measure(self, z: Array) -> None:
        """Measure a window; later steps read its values in place."""
        np.subtract(z, self.means, out=self._squares)
        np.multiply(self._squares, self._squares, out=self._squares)

    @property
    def _noise(self) -> float:
        """Variance of the noise through which the uncertainty is measured."""
        return self.resolution * self.spread / (4 * math.log(self.components))

    def _odds(self, noise: float = 0.0) -> tuple[Array, Array, float]:
        """The measured window seen through isotropic noise of this variance: odds [C], 1 for the most likely component,
        their logarithms, and their sum.
        """
        variances, peaks = self.variances, self._peaks
        if noise:
            variances = np.add(variances, np.float32(noise), out=self._scratch)
            peaks = self._log_peaks(variances)
        logs: Array = np.divide(self._squares, variances, out=self._scratch) @ self._minus_halves
        logs += peaks
        logs += self._log_weights
        logs -= logs[logs.argmax()]
        odds = np.exp(logs)
        return odds, logs, float(odds @ self._each)

    def _posterior(self, z: Array) -> Array:
        self._measure(z)
        odds, _, total = self._odds()
        result: Array = odds / np.float32(total)
        return result

    def _entropy(self, odds: Array, logs: Array, total: float) -> float:
        """Normalised entropy, in [0, 1], of a posterior given by its odds."""
        entropy = math.log(total) - float(odds @ logs) / total
        return min(max(entropy / math.log(self.components), 0.0), 1.0)

    def _learn(self, z: Array) -> None:
        """Move towards `z`, the measured window."""
        self.windows += 1
        gain = max(self.rate, 1.0 / (self.windows + 1))  # a plain mean first, then a sliding one
        self._average += np.float32(gain) * (z - self._average)
        self.spread = spread = _spread(self._average)
        distances = self._squares @ self._ones
        if float(distances[distances.argmin()]) > _NOVEL * spread:
            self._claim(z, spread)
            return
        odds, _, total = self._odds()
        if total == 1.0:  # in many dimensions mostly one component alone is responsible
            self._move(int(odds.argmax()), z)
        else:
            self._share(odds / np.float32(total), z)

    def _move(self, component: int, z: Array) -> None:
        """`_share` for one component with all the responsibility: in place, and in half as many steps."""
        rate, mean, variance = self.rate, self.means[component], self.variances[component]
        mean += rate * (z - mean)
        variance += rate * self._squares[component]
        variance *= 1 - rate
        np.maximum(variance, VARIANCE_FLOOR, out=variance)
        self._peaks[component] = self._log_peaks(variance[None])[0]
        weights = self.weights * (1 - rate)
        weights[component] += rate
        self._weigh(weights)

    def _share(self, posterior: Array, z: Array) -> None:
        """Move every component by its share; one whose share is exactly 0 stays as it is."""
        (moved,) = posterior.nonzero()
        step = np.float32(self.rate) * posterior[moved, None]
        means, variances = self.means[moved], self.variances[moved]
        self.means[moved] = means + step * (z - means)
        # The variance of the blend (1 - step)·N(mean, variance) + step·(a point at z).
        variances = (1 - step) * (variances + step * self._squares[moved])
        self.variances[moved] = variances = np.maximum(variances, np.float32(VARIANCE_FLOOR))
        self._peaks[moved] = self._log_peaks(variances)
        self._weigh(self.weights + np.float32(self.rate) * (posterior - self.weights))

    def _claim(self, z: Array, spread: float) -> None:
        lightest = int(self.weights.argmin())
        variance = max(_NARROW * spread / (2 * self.dim), VARIANCE_FLOOR)
        noise = self._rng.standard_normal(self.dim).astype(np.float32)
        mean = (z + math.sqrt(variance) * noise).astype(np.float32)
        self.means[lightest] = mean / np.float32(max(math.sqrt(mean @ mean), _MIN_NORM))
        self.variances[lightest] = variance
        self._peaks[lightest] = -0.5 * self.dim * math.log(variance)
        weights = self.weights * np.float32(1 - 1 / self.components)
        weights[lightest] = 1 / self.components
        self._weigh(weights)

    def _weigh(self, weights: Array) -> None:
        """Set new weights, normalised to sum to 1, none of them much below the floor."""
        floored = np.maximum(weights, np.float32(WEIGHT_FLOOR))
        self.weights = floored / (floored @ self._each)
        self._log_weights = np.log(self.weights)

    def _log_peaks(self, variances: Array) -> Array:
        """`ln` of each row's density at its mean, up to a constant, [n, d] -> [n]: one logarithm for every four values,
        because logarithms take most of the time.
        """
        quarter = self.dim // 4
        product = variances[:, :quarter] * variances[:, quarter : 2 * quarter]
        product *= variances[:, 2 * quarter : 3 * quarter]
        product *= variances[:, 3 * quarter : 4 * quarter]
        result: Array = np.log(product) @ self._minus_halves[:quarter]
        if rest := self.dim - 4 * quarter:
            result += np.log(variances[:, -rest:]) @ self._minus_halves[:rest]
        return result

    def _negatives(self, z: Array, count: int, rng: np.random.Generator) -> Array:
        own = int(np.argmax(self._posterior(z)))
        offsets = self.means - self.means[own]
        scores = np.log(self.weights) - np.einsum("cd,cd->c", offsets, offsets) / (2 * NEGATIVE_SCALE**2)
        scores[own] = -np.inf
        odds = np.exp((scores - scores.max()).astype(np.float64))
        chosen = rng.choice(self.components, size=count, p=odds / odds.sum())
        noise = rng.standard_normal((count, self.dim), dtype=np.float32)
        noise *= np.sqrt(self.variances[chosen])
        return _unit(self.means[chosen] + noise)


def parameter_bytes(components: int = 64, dim: int = 128) -> int:
    """Size of the mixture parameters on the wire: 2·(2·C·d) + 2·C bytes."""
    return 2 * (2 * components * dim) + 2 * components


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Array = vectors / np.maximum(norms, np.float32(_MIN_NORM))
    return result


def _spread(average: Array) -> float:
    """D² of unit vectors with this mean: 2·(1 - |mean|²)."""
    return max(2.0 * (1.0 - float(average @ average)), _MIN_SPREAD)


def _direction(vector: Array) -> Array | None:
    """The unit vector along `vector`, or None if it is not finite or has no direction."""
    norm = math.sqrt(vector @ vector)
    if not norm < math.inf:  # not finite itself, or beyond 1e19, whose square float32 cannot hold
        norm = float(np.linalg.norm(vector.astype(np.float64)))
    return vector / np.float32(norm) if _MIN_NORM < norm < math.inf else None
