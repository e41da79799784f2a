"""Certificates: whom a device trusts, and whom a broker with an authority asks for one."""

import asyncio

import harness
import pytest
from guarded_broker import Guarded

from runtime_edge.errors import AccessError, LinkError, UsageError
from runtime_edge.formats import subjects
from runtime_edge.transport.connection import Connection
from runtime_server.broker.broker_process import BrokerTls


def _attempt(guarded, url, **tls):
    """Connect as pi-1 with these files; a frame is delivered then."""

    async def work():
        link = Connection(url, "pi-1", guarded.credentials("pi-1", **tls))
        try:
            await link.connect()
            await harness.stored(link, "pi-1.boot.0", 0, b"frame")
        finally:
            await link.close()

    return work()


def test_over_tls_a_device_trusts_the_right_broker_only(certificates, tmp_path):
    tls = BrokerTls(certificates / "gateway.pem", certificates / "gateway.key")
    guarded = Guarded(tmp_path, tls)

    async def work():
        async with guarded.running():
            url = guarded.broker.url
            assert url.startswith("tls://")
            await _attempt(guarded, url, tls_ca=certificates / "ca.pem")
            await _attempt(guarded, url, tls_ca=certificates / "gateway.pem")
            for files in ({"tls_ca": certificates / "other.pem"}, {}):
                with pytest.raises(AccessError, match=r"tls://.*: its certificate is refused: .*see --tls-ca$"):
                    await _attempt(guarded, url, **files)
            with pytest.raises(AccessError, match=r"certificate is refused: .*localhost"):
                await _attempt(guarded, url.replace("127.0.0.1", "localhost"), tls_ca=certificates / "ca.pem")
            with pytest.raises(UsageError, match="only tls:// addresses are encrypted"):
                await _attempt(guarded, url.replace("tls://", "nats://"), tls_ca=certificates / "ca.pem")
            with pytest.raises(LinkError):
                await _attempt(guarded, url.replace("tls://", "nats://"))

    asyncio.run(work())


def test_a_broker_that_ends_is_told_once_and_not_by_asyncio(certificates, tmp_path, caplog):
    guarded = Guarded(tmp_path, BrokerTls(certificates / "gateway.pem", certificates / "gateway.key"))

    async def work():
        async with guarded.running():
            link = Connection(guarded.broker.url, "pi-1", guarded.credentials("pi-1", tls_ca=certificates / "ca.pem"))
            await link.connect()
            await guarded.broker.stop()
            while not link.trouble:
                await asyncio.sleep(0.01)
            trouble = link.trouble
            await link.close()
            return trouble

    with caplog.at_level("INFO"):
        assert "the connection was lost" in asyncio.run(work())
    assert [record.message for record in caplog.records if record.name.startswith("asyncio")] == []
    assert [record.message for record in caplog.records].count("broker is away") == 1


def test_a_broker_that_claims_to_know_no_tls_is_not_believed(guarded, certificates):
    async def work():
        async with guarded.running():
            with pytest.raises(AccessError, match="no TLS with it"):
                await _attempt(guarded, guarded.broker.url.replace("nats://", "tls://"), tls_ca=certificates / "ca.pem")

    asyncio.run(work())
    assert "nkey" not in (guarded.directory / "broker" / "broker.log").read_text().lower(), "it introduced itself"


def test_a_broker_with_an_authority_asks_for_certificates_and_the_server_itself_has_one(certificates, tmp_path):
    tls = BrokerTls(*(certificates / f"gateway.{end}" for end in ("pem", "key")), ca=certificates / "ca.pem")
    guarded = Guarded(tmp_path, tls)

    def files(name):
        return {"tls_cert": certificates / f"{name}.pem", "tls_key": certificates / f"{name}.key"}

    async def work():
        async with guarded.running() as hub:
            authority = {"tls_ca": certificates / "ca.pem"}
            await _attempt(guarded, guarded.broker.url, **authority, **files("device"))
            for wrong in ({}, files("other")):
                with pytest.raises(LinkError):
                    await _attempt(guarded, guarded.broker.url, **authority, **wrong)
            return (await hub.stream.stream_info(subjects.STREAM)).state.messages

    assert asyncio.run(work()) == 1
