"""A broker with credentials, and certificates for it."""

import shutil

import pytest
from certificate import self_signed
from guarded_broker import Guarded


@pytest.fixture
def guarded(tmp_path):
    return Guarded(tmp_path)


@pytest.fixture
def certificates(tmp_path):
    """ca, other (another authority), and gateway, elsewhere and device signed by ca; each NAME.pem and NAME.key."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")
    for name in ("ca", "other"):
        self_signed(tmp_path, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                 "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    for name, alternative in (("gateway", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere"), ("device", "DNS:pi-1")):
        self_signed(tmp_path, "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                 "-out", f"{name}.pem", "-addext", f"subjectAltName={alternative}",
                 "-addext", "basicConstraints=critical,CA:FALSE")  # fmt: skip
    return tmp_path
