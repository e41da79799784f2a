"""`make device-archive`: packs everything a Pi needs to install `ssc` offline into one file (docs/deployment.md).

python -m tools.device_archive [--key signing.key] [-o DIRECTORY]

dist/streamsplit-device-VERSION-aarch64.tar has the wheels of the extras edge, audio and metrics for the Pythons of
Debian 12 and 13, a list of their checksums, and install.sh. The same sources and wheels give the same bytes.

Exit codes: 0 done; 2 something is not available or an argument is wrong, with one line that says what.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tarfile
import tempfile
from pathlib import Path

from runtime_edge.base.files import write_atomic
from runtime_edge.errors import DISTRIBUTION, SignatureError
from runtime_edge.formats import minisign
from tools.arm import wheels
from tools.arm.debian import Unavailable
from tools.arm.wheels import REPOSITORY

EXTRAS = ("edge", "audio", "metrics")
PYTHONS = ("3.11", "3.13")
"""The Pythons of Debian 12 and 13, and so of Raspberry Pi OS."""
INSTALL = REPOSITORY / "deploy" / "install.sh"


def main() -> int:
    """Fetch, pack and sign."""
    parser = argparse.ArgumentParser(prog="python -m tools.device_archive", description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=REPOSITORY / "dist", help="folder of the archive [dist]")
    parser.add_argument("--key", type=Path, help="sign the archive with this key of `ssc key new` (minisign)")
    given = parser.parse_args()
    try:
        key = minisign.read_secret_key(given.key) if given.key else None
        with tempfile.TemporaryDirectory() as made:
            fetch(Path(made))
            archive = pack(Path(made), given.output)
    except (Unavailable, SignatureError) as exc:
        print(f"device-archive: {exc}", file=sys.stderr)
        return 2
    print(f"{archive} ({archive.stat().st_size / 1e6:.0f} MB)")
    if key is not None:
        print(sign(archive, key))
    return 0


def fetch(directory: Path) -> None:
    """Put this project's wheel and all its dependencies for each Python into a directory. Raises Unavailable."""
    wheels.pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(REPOSITORY))
    wheels.make_source_only(directory)
    for python in PYTHONS:
        wanted = ["pip", *wheels.requirements(EXTRAS, python), *wheels.NEWEST_RUNTIME]
        given = ["--find-links", str(directory), "--constraint", str(wheels.CONSTRAINTS)]
        wheels.pip("download", "--dest", str(directory), *given, *wheels.for_python(python), *wanted)


def pack(directory: Path, output: Path) -> Path:
    """Pack a directory of wheels into the archive."""
    files = {f"wheels/{path.name}": path.read_bytes() for path in directory.glob("*.whl")}
    (own,) = directory.glob("streamsplit_audio-*.whl")
    version = own.name.split("-")[1]
    files["requirements.txt"] = f"{DISTRIBUTION}[{','.join(EXTRAS)}]=={version}\n".encode()
    files["install.sh"] = INSTALL.read_bytes()
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    files["SHA256SUMS"] = "".join(sums).encode()
    folder = f"streamsplit-device-{version}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(entry, io.BytesIO(content))
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{folder}-aarch64.tar"
    write_atomic(archive, packed.getvalue())
    return archive


def sign(archive: Path, key: minisign.SecretKey) -> Path:
    """Sign the archive, so that the program minisign can verify it; returns the signature's path."""
    signature = minisign.signature_path(archive)
    write_atomic(signature, minisign.sign(archive.read_bytes(), key, f"file:{archive.name}").encode())
    return signature


if __name__ == "__main__":
    sys.exit(main())
