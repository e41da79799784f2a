"""An arm64 Debian system in which every command runs emulated, as a user would type it on a Raspberry Pi.

    userland = Userland.unpacked(DebianCache(Path(".cache/arm")), directory, "bookworm")
    userland.run("uname -m")

Besides Debian's essential packages it has those of Raspberry Pi OS that the documentation relies on: Python, apt and
sudo. The kernel starts its programs with QEMU only within a user namespace (binfmt_misc, Linux 6.7), so nothing is
registered on this machine. It needs root, to set the owners of files.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.arm.debian import CPUINFO, DebianCache, Unavailable
from tools.arm.machine import CPU

_PACKAGES = ("?essential", "apt", "passwd", "python3", "sudo")
_MERGED = ("bin", "lib", "sbin")
_DEBIANS, _AUTHORITIES = "etc/ssl/certs/ca-certificates.crt", "etc/authorities.crt"
"""Whom to trust: apt's file, which a package may write anew, and pip's."""
_AS_HERE = {name: f"/{name}" for name in ("etc/resolv.conf", "etc/hosts", _DEBIANS)} | {_AUTHORITIES: f"/{_DEBIANS}"}
"""Network and trust: files that are as on this machine now, not as when the system was installed."""
_KERNEL = (6, 7)
_ENTER = r"""
echo; read -r _
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":arm64:M::$magic:$mask:$QEMU:FOC" >/proc/sys/fs/binfmt_misc/register
mount --rbind /dev "$ROOT/dev"
mount -t proc proc "$ROOT/proc"
mount --bind "$ROOT/etc/cpuinfo" "$ROOT/proc/cpuinfo"
exec chroot --userspec="$WHO:$WHO" "$ROOT" /usr/bin/env -i HOME="$LIVES" PATH="$SEARCHED" \
    QEMU_CPU="$QEMU_CPU" LANG=C.UTF-8 /bin/sh -c "cd; $SCRIPT" </dev/null
"""
_FIRST = """
export DEBIAN_FRONTEND=noninteractive
dpkg --force-depends --force-unsafe-io --install /packages/*.deb && dpkg --configure --pending
"""
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Userland:
    """A root directory with Debian for arm64."""

    root: Path
    qemu: Path

    @classmethod
    def unpacked(cls, cache: DebianCache, directory: Path, suite: str) -> Userland:
        """Unpack a new one at `directory`. Raises Unavailable."""
        release = tuple(int(part) for part in platform.release().split(".")[:2])
        if os.geteuid() != 0 or release < _KERNEL:
            raise Unavailable("an emulated system needs root and Linux 6.7")
        qemu = cache.qemu()

        def fill(root: Path) -> None:
            cache.say(f"installing Debian {suite} for arm64, emulated: some minutes")
            _install(cache, cls(root, qemu), suite)

        made = cache.cached(f"userland-{suite}", (*_PACKAGES, _FIRST, CPUINFO), fill)
        subprocess.run(["cp", "-a", "--reflink=auto", made, directory], check=True)
        _as_here(directory)
        return cls(directory, qemu)

    def run(self, script: str, user: bool = False, network: bool = True, timeout: float = _TIMEOUT_S) -> str:
        """Run shell commands as root, or as the user pi, who may use sudo; returns their output on both streams.

        Raises CommandError when the last command fails.
        """
        apart = ["unshare", "--user", "--mount", "--pid", "--fork", "--kill-child", *(() if network else ("--net",))]
        who = {"WHO": "1000", "LIVES": "/home/pi"} if user else {"WHO": "0", "LIVES": "/root"}
        variables = {
            "PATH": os.environ["PATH"], "QEMU": str(self.qemu), "QEMU_CPU": CPU, "ROOT": str(self.root),
            "SEARCHED": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SCRIPT": script, **who,
        }  # fmt: skip
        with subprocess.Popen(
            [*apart, "sh", "-ec", _ENTER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=variables,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            for kind in ("uid", "gid"):
                Path(f"/proc/{process.pid}/{kind}_map").write_text("0 0 65536\n")
            try:
                said, _ = process.communicate("\n", timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise CommandError(f"no end after {timeout:.0f} s\n{script.strip()}") from None
        if process.returncode:
            raise CommandError(f"exit code {process.returncode}\n{script.strip()}\n{said}")
        return said


class CommandError(Exception):
    """A command in the userland failed; the message has its output."""


def _install(cache: DebianCache, userland: Userland, suite: str) -> None:
    root = userland.root
    for folder in _MERGED:
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    with cache.downloaded_with_dependencies(_PACKAGES, suite) as packages:
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        (root / "packages").mkdir()
        for package in packages:
            shutil.move(package, root / "packages")
    for name in ("dev", "proc", "var/lib/dpkg/info", "var/lib/dpkg/updates"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("var/lib/dpkg/status", "var/lib/dpkg/available"):
        (root / name).touch()
    (root / "etc/cpuinfo").write_text(CPUINFO)
    (root / "etc/apt/sources.list").write_text(f"deb {cache.mirror} {suite} main\n")
    _as_here(root)
    for name in ("passwd", "group"):  # dpkg's first packages need these
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    userland.run(_FIRST, timeout=2 * _TIMEOUT_S)
    userland.run("useradd --create-home --shell /bin/bash --groups audio pi")
    (root / "etc/sudoers.d/pi").write_text("pi ALL=(ALL) NOPASSWD: ALL\n")
    shutil.rmtree(root / "packages")


def _as_here(root: Path) -> None:
    for name, here in _AS_HERE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, root / name)
    (root / "etc/pip.conf").write_text(f"[global]\ncert = /{_AUTHORITIES}\n")
