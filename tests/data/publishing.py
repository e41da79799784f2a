"""What a server puts on a broker, put on one in memory."""

from __future__ import annotations

from runtime_edge.formats import subjects
from runtime_edge.formats.bundle import MANIFEST, Bundle
from runtime_edge.formats.records.release import Release, encode
from runtime_edge.transport.in_memory import InMemoryTransport


def publish(transport: InMemoryTransport, bundle: Bundle, target: str = "rpi4", variant: str = "onnx-fp32") -> None:
    """A bundle's files and its release; those who watch for it are not told."""
    for block in bundle.manifest.info.blocks:
        file = bundle.manifest.variant(block, variant).file
        transport.objects[subjects.asset_object(file)] = bundle.read(file)
    transport.objects[subjects.manifest_object(bundle.digest)] = (bundle.path / MANIFEST).read_bytes()
    release = Release(generation=bundle.manifest.info.generation, manifest=bundle.digest)
    transport.values[subjects.RELEASES, target] = encode(release)
