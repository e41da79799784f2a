"""The compiler: cuts an encoder wherever one tensor crosses, lowers and checks every block, and packs a bundle.

    import streamsplit_compile
    bundle = streamsplit_compile.compile("encoder.pt", "bundle/", targets=["rpi4"], calibrate="recordings/")
    for advice in streamsplit_compile.advise("bundle/", link="lte"):
        print(advice.sentence())

torch is loaded by the calls, not by the import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime_edge.errors import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from torch import nn

    from runtime_edge.formats.bundle import Bundle
    from streamsplit_compile.advice.advice import Advice

__all__ = ["__version__", "advise", "compile"]

__version__ = installed_version()


def compile(  # noqa: A001
    encoder: str | PathLike[str] | nn.Module,
    out: str | PathLike[str],
    *,
    targets: Sequence[str] = ("rpi4", "m2"),
    cuts: str = "auto",
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    calibrate: str | PathLike[str] | None = None,
    windows: int = 16,
    bottlenecks: bool = False,
    link: str = "wifi",
    profile: str | PathLike[str] | None = None,
    seed: int = 0,
    generation: int = 1,
    keep_norms: bool = False,
    adaptable: bool = False,
    key: str | PathLike[str] | None = None,
    factory: str | None = None,
    sample_rate: int | None = None,
    front_end: str | None = None,
    unsafe_load: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Bundle:
    """Compile an encoder into a bundle directory, as `ssc compile` does, and open it.

    `encoder` is a file that `ssc compile` reads (`factory`, `sample_rate`, `front_end` and `unsafe_load` supply what
    the file does not say itself), or a torch module that takes waveforms (batch, samples) float32 and returns
    embeddings (batch, d), with the attributes `sample_rate` (Hz) and `window_samples`. The bundle is written to `out`
    and replaces any bundle there; `key` is the file of a secret key to sign it with. The other parameters are the
    command's options (`ssc compile --help-all`), with lists instead of comma-separated text. `progress` is called with
    (what is being done, steps done, steps in all).

    Whatever the user should know is logged as a warning. Raises UsageError, FormatError, SignatureError, or CheckFailed
    when the encoder fails a check; nothing is written then.
    """
    from streamsplit_compile.compile_calls import compile_bundle

    return compile_bundle(
        encoder, out, targets, formats, precisions, calibrate, bottlenecks, profile, key, progress,
        loading=(factory, sample_rate, front_end, unsafe_load), cuts=cuts, windows=windows, link=link, seed=seed,
        generation=generation, keep_norms=keep_norms, adaptable=adaptable,
    )  # fmt: skip


def advise(
    bundle: str | PathLike[str] | Bundle,
    targets: Sequence[str] | None = None,
    link: str = "wifi",
    profile: str | PathLike[str] | None = None,
) -> list[Advice]:
    """Estimate the cost of each way to run a bundle on its targets (or some of them) over a link, and recommend one.

    Returns one Advice for each target: `sentence()` is the recommendation, `best` and `estimates` have the figures.
    `profile` is a file of costs measured on one of the targets. Raises UsageError, BundleError or FormatError.
    """
    from streamsplit_compile.compile_calls import advise_bundle

    return advise_bundle(bundle, targets, link, profile)
