"""What a reader may do with garbage."""


def read_or_refused(read, data, error):
    """What `read(data, "x")` gives; None where it is refused, which must be one line that names the source."""
    try:
        return read(data, "x")
    except error as exc:
        said = str(exc)
    assert said.startswith("x: "), said
    assert "\n" not in said, said
    return None
