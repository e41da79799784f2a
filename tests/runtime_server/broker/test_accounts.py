"""The accounts of the broker: what each device's account takes from the server's, and gives to it."""

import json
import subprocess

import pytest

from runtime_edge.formats import subjects
from runtime_edge.formats.credentials import new_seed, public_key
from runtime_server.broker.accounts import READERS_ACCOUNT, SERVER_ACCOUNT, accounts_config
from runtime_server.broker.broker_process import broker_program

SERVER, KEYS = public_key(new_seed()), {name: public_key(new_seed()) for name in ("pi-1", "pi-2")}

FORBIDDEN = [
    "$JS.API.STREAM.PURGE.ACTIVATIONS",
    "$JS.API.CONSUMER.MSG.NEXT.ACTIVATIONS.server-0",
    "$JS.API.CONSUMER.PAUSE.ACTIVATIONS.server-0",
    "$JS.API.DIRECT.GET.ACTIVATIONS",
    "$JS.API.DIRECT.GET.KV_presence.>",
    "$KV.tables._all.rpi4",
    "$KV.releases._key",
    "srv.status",
]


@pytest.fixture
def accounts():
    return _parsed(accounts_config(SERVER, KEYS, {"phone": "word"}, anyone=False))


def _parsed(config):
    """The accounts by name: each is a line of JSON."""
    lines = config.partition("accounts {\n")[2].partition("\n}\n")[0].splitlines()
    return {name: rules for line in lines for name, rules in json.loads("{" + line + "}").items()}


def _imports(rules, kind):
    return {(one[kind]["account"], one[kind]["subject"]) for one in rules["imports"] if kind in one}


def _covers(pattern, subject):
    pattern, subject = pattern.split("."), subject.split(".")
    for place, token in enumerate(pattern):
        if token == ">":
            return len(subject) > place
        if place >= len(subject) or token not in ("*", subject[place]):
            return False
    return len(pattern) == len(subject)


def test_every_device_is_alone_in_an_account_of_its_own(accounts):
    assert set(accounts) == {SERVER_ACCOUNT, READERS_ACCOUNT, "pi-1", "pi-2"}
    for name, key in KEYS.items():
        assert [user["nkey"] for user in accounts[name]["users"]] == [key]
        assert "exports" not in accounts[name], "nobody reaches into a device's account"
        assert "jetstream" not in accounts[name]
        assert 0 < accounts[name]["limits"]["max_connections"] < 100
    assert accounts[SERVER_ACCOUNT]["users"] == [{"nkey": SERVER}]


def test_all_that_a_device_may_say_or_hear_is_carried_to_and_from_the_server_and_nothing_else_is(accounts):
    for name in KEYS:
        rules = accounts[name]
        services, streams = _imports(rules, "service"), _imports(rules, "stream")
        allowed = rules["users"][0]["permissions"]
        said = {subject for _, subject in services}
        assert set(allowed["publish"]["allow"]) == said | {subjects.filler(name)}
        assert set(allowed["subscribe"]["allow"]) == {subject for _, subject in streams}
        assert {account for account, _ in streams} == {SERVER_ACCOUNT}
        assert services - {(SERVER_ACCOUNT, subject) for subject in said} == {(READERS_ACCOUNT, subjects.events(name))}
        others = set(KEYS) - {name}
        assert not any(other in subject for _, subject in services | streams for other in others)


def test_each_import_is_of_something_that_is_exported(accounts):
    for rules in accounts.values():
        for kind in ("service", "stream"):
            for account, subject in _imports(rules, kind) if "imports" in rules else ():
                exported = [one[kind] for one in accounts[account]["exports"] if kind in one]
                assert any(_covers(pattern, subject) for pattern in exported), subject


def test_a_device_reads_what_it_says_of_itself_and_not_what_others_say(accounts):
    wanted = {name: f"$JS.API.DIRECT.GET.KV_presence.$KV.presence.{name}" for name in KEYS}
    for name, own in wanted.items():
        taken = [subject for _, subject in _imports(accounts[name], "service")]
        allowed = accounts[name]["users"][0]["permissions"]["publish"]["allow"]
        for subject in wanted.values():
            assert any(_covers(pattern, subject) for pattern in taken) == (subject == own)
            assert any(_covers(pattern, subject) for pattern in allowed) == (subject == own)


def test_one_message_answers_a_request_unless_it_is_for_a_batch_of_objects(accounts):
    exports = accounts[SERVER_ACCOUNT]["exports"]
    streamed = [one for one in exports if one.get("response_type", "single") != "single"]
    assert [one["service"] for one in streamed] == ["$JS.API.DIRECT.GET.OBJ_bundles"]
    assert "response_threshold" in streamed[0], "what answers it is forgotten after a while"
    services = [one["service"] for one in exports if "service" in one]
    for forbidden in FORBIDDEN:
        assert not any(_covers(pattern, forbidden) for pattern in services), forbidden


def test_a_reader_publishes_nothing_and_those_without_credentials_are_the_servers(accounts):
    (reader,) = accounts[READERS_ACCOUNT]["users"]
    assert (reader["user"], reader["password"]) == ("phone", "word")
    assert reader["permissions"]["publish"] == {"deny": ">"}
    assert _imports(accounts[READERS_ACCOUNT], "service") == {(SERVER_ACCOUNT, "evt.*")}
    open_to_all = accounts_config(SERVER, {}, {}, anyone=True)
    assert len(_parsed(open_to_all)[SERVER_ACCOUNT]["users"]) == 2
    assert "no_auth_user" in open_to_all


@pytest.mark.parametrize("count", [0, 200])
def test_nats_server_takes_the_configuration(tmp_path, count):
    devices = {f"pi-{number}": public_key(new_seed()) for number in range(count)}
    config = tmp_path / "nats.conf"
    config.write_text(accounts_config(SERVER, devices, {"phone": "word"}, anyone=True))
    checked = subprocess.run([broker_program(), "-t", "-c", config], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
