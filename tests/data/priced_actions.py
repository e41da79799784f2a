"""Actions of a splitter table with costs that a test gives by hand."""

from runtime_edge.formats.records.actions import ActionCosts


def action(
    name: str, ms: float, mj: float, size: int, server_ms: float, quality: tuple[float, ...], teaches: bool
) -> ActionCosts:
    return ActionCosts(
        name=name,
        cut=name,
        encoding=None,
        answer="server" if teaches else "device",
        device_ms=ms,
        device_mj=mj,
        bytes=size,
        server_ms=server_ms,
        quality=quality,
        teaches=teaches,
    )
