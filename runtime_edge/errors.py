"""Every error a device or a format can raise.

    SscError                bad input, or something that could not be done; exit code 2
    ├── UsageError          a wrong option or argument
    ├── MissingExtra        an optional dependency is not installed; names the extra
    ├── FormatError         a file or message that cannot be trusted or read
    │   ├── BundleError     a bundle: layout, manifest, digest, generation
    │   │   └── OlderBundle older than the one in use, without permission to go back
    │   ├── SignatureError  a signature that is missing, malformed or wrong
    │   ├── OldRecord       a signed record older than one already accepted
    │   ├── TableError      a splitter table
    │   ├── HeadError       a head that labels embeddings
    │   └── FrameError      a frame or reply on the wire
    ├── SourceError         audio that cannot be read
    ├── BackendError        an inference runtime that refused a block
    │   └── SelfTestError   a bundle whose result on this machine is not the expected one
    ├── SpoolError          the spool's disk is full or fails
    ├── LinkError           the broker cannot be reached, or refused
    │   └── AccessError     credentials or a certificate were refused
    ├── WaitsForBudget      an update that is larger than what is left of a budget
    └── CheckFailed         a check did not hold; exit code 1

A message says what was wrong, where (file, field, value) and what to do, on one line.
"""

from __future__ import annotations

DISTRIBUTION = "streamsplit-audio"
"""The name of the distribution to install; `streamsplit` on the package index is another program."""


def installed_version() -> str:
    """Version of this distribution; empty when run from the sources."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""


def install_command(extra: str) -> str:
    """The command that installs one of this project's extras: from the wheel, since it is on no package index."""
    wheel = f"{DISTRIBUTION.replace('-', '_')}-{installed_version() or 'VERSION'}-py3-none-any.whl"
    return f'pip install "{wheel}[{extra}]" (the wheel that `make wheel` builds)'


class SscError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 2


class UsageError(SscError):
    """A wrong option or argument."""


class MissingExtra(SscError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: {install_command(extra)}")


class FormatError(SscError):
    """A file or message that cannot be trusted or read."""


class BundleError(FormatError):
    """A bundle whose layout, manifest, digests or generation do not hold."""


class OlderBundle(BundleError):
    """A bundle of an older generation than the one in use, without permission to go back."""


class SignatureError(FormatError):
    """A signature that is missing, malformed or wrong."""


class OldRecord(FormatError):
    """A signed table, head or release that is older than one already accepted."""


class TableError(FormatError):
    """A splitter table that is malformed or made for other cuts."""


class HeadError(FormatError):
    """A head that is malformed or made for other embeddings."""


class FrameError(FormatError):
    """A frame or reply that cannot be decoded."""


class SourceError(SscError):
    """Audio that cannot be read."""


class BackendError(SscError):
    """An inference runtime refused a block."""


class SelfTestError(BackendError):
    """A bundle whose result on this machine is not the expected one."""


class SpoolError(SscError):
    """The spool cannot write or read; what it holds is kept."""


class LinkError(SscError):
    """The broker cannot be reached or refused a request."""


class AccessError(LinkError):
    """Credentials or a certificate were refused: retrying soon is useless."""


class WaitsForBudget(SscError):
    """An update larger than what is left of the budget."""

    def __init__(self, message: str, until: float) -> None:
        """`until`: when it may be fetched, in seconds since the epoch; infinite for never."""
        super().__init__(message)
        self.until = until


class CheckFailed(SscError):
    """A check did not hold (for instance parity, or a bound on regret)."""

    exit_code = 1
