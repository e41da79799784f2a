"""The self-test of a new bundle in a process of its own, with bounds on memory and time.

A graph of known operators can still ask for more memory than the machine has, run for hours, or crash the runtime. Here
that ends the child process, not the device. The child yields to everything else: it has a low priority, and if memory
runs out, the kernel ends it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from runtime_edge.errors import SelfTestError, SscError
from runtime_edge.formats.bundle import Bundle, open_bundle
from runtime_edge.inference.contract import RuntimeOptions
from runtime_edge.inference.cut_assets.loaded import self_test
from runtime_edge.inference.prefix import Prefix

TIMEOUT_S = 300.0
"""Enough for a busy Raspberry Pi; the shipped encoders need seconds."""
BASE_BYTES = 512 << 20
"""What a child may hold besides its blocks and activations: interpreter, libraries, workspaces."""
_COPIES = 8
"""How many copies of blocks and activations may be in memory at once."""
_STDERR_BYTES = 4096


def memory_bound(bundle: Bundle, variant: str) -> int:
    """The most memory that a self-test may hold, bytes: derived from the manifest, so the same on every machine."""
    info = bundle.manifest.info
    files = sum(size for _, size in bundle.manifest.device_files(variant).values())
    activations = sum(4 * cut.values for cut in info.cuts)
    return BASE_BYTES + _COPIES * (files + activations)


async def self_test_in_child(
    bundle: Bundle,
    variant: str,
    options: RuntimeOptions,
    memory_limit_mb: float | None = None,
    *,
    memory_bytes: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Load and self-test a bundle in a child process of at most `memory_bytes` of data (`memory_bound` unless given).

    `memory_limit_mb` bounds the blocks loaded at a time, as for `Prefix`. Raises SelfTestError if the bundle fails or
    exceeds a bound, SscError if the child was killed from outside.
    """
    limit = memory_bound(bundle, variant) if memory_bytes is None else memory_bytes
    command = [
        sys.executable, "-m", __name__, str(bundle.path), bundle.digest, variant, str(options.threads),
        ",".join(options.providers), str(memory_limit_mb or ""), str(limit), str(int(timeout_s) + 1),
    ]  # fmt: skip
    with tempfile.TemporaryFile() as errors:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            code = await asyncio.wait_for(child.wait(), timeout_s)
        except asyncio.TimeoutError:
            raise SelfTestError(f"{bundle.path}: the self-test took more than {timeout_s:.0f} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _STDERR_BYTES))
        said = errors.read().decode(errors="replace").strip().splitlines()
    if code == -signal.SIGKILL:  # by the kernel or an operator: it may pass at another time
        raise SscError(f"{bundle.path}: the self-test was killed; the machine may be short of memory")
    if code < 0:
        raise SelfTestError(f"{bundle.path}: the self-test crashed the runtime (signal {-code})")
    if code > 0:
        reason = said[-1] if said else f"it ended with {code}"
        raise SelfTestError(f"{reason} (self-test within {limit >> 20} MB)")


def main(arguments: list[str]) -> None:
    """The child process; ends with an error if the bundle fails."""
    path, digest, variant, threads, providers, memory_limit_mb, memory_bytes, seconds = arguments
    _bound(int(memory_bytes), int(seconds))
    bundle = open_bundle(Path(path))
    if bundle.digest != digest:
        raise SystemExit(f"{path}: changed while it was being tested")
    options = RuntimeOptions(int(threads), tuple(providers.split(",")))
    try:
        self_test(Prefix(bundle, variant, options, float(memory_limit_mb) if memory_limit_mb else None))
    except SscError as exc:
        raise SystemExit(str(exc)) from None


def _bound(memory_bytes: int, seconds: int) -> None:
    """Limit this process; on a system without such limits only the parent's timeout remains."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A limit on processor time, so that a child whose parent is gone ends, too.
        cores = os.cpu_count() or 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds * cores, seconds * cores))
        # Not RLIMIT_AS, which counts the addresses that threads reserve and never use.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
