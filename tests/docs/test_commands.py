"""Every command that README or docs have a user type is typed by a test, in an environment of the page's extras."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import PAGES, ROOT, commands_in, documented, usual_extras

TYPED = sorted((ROOT / "tests" / "integration" / "install").glob("test_*.py"))
FIGURES = {f"docs/proof{page}.md" for page in ("", "-zero", "-earlier", "-earlier-zero")}
"""Their commands say how figures were made, take hours, and need recordings and weights that are not in the project."""
NOT_TYPED = {
    "ssc server run encoder.pt bundle/ --state server/ --host 0.0.0.0 --tls-cert gateway.pem --tls-key gateway.key":
        "tests/integration/access/test_tls.py has the certificates",
    "ssc edge run --broker tls://gateway:4222 --tls-ca ca.pem --credentials pi-1.creds --source mic":
        "tests/integration/access/test_tls.py has the certificates",
    "ssc compile ast.pt2 --front-end ast -o bundle/":
        "tests/streamsplit_compile/encoder/test_front_ends.py has archives that take features",
    "ssc compile clap.pt2 --front-end preprocessor_config.json -o bundle/":
        "tests/streamsplit_compile/encoder/test_front_ends.py has archives that take features",
    "ssc compile encoder.pt --targets rpi4 -o bundle/ --calibrate recordings/ --bottlenecks":
        "minutes of training; tests/streamsplit_compile/bundle/test_bottlenecks.py takes a few steps",
    "ssc compile encoder.pt --targets rpi4 -o quiet/ --cuts pool --calibrate recordings/ --bottlenecks --hide words "
    "--recordings speech_commands/":
        "minutes of training; tests/streamsplit_compile/cli/test_hide_options.py takes a few steps",
    "ssc audit quiet/ --recordings speech_commands/":
        "an hour; tests/streamsplit_compile/cli/test_audit_command.py audits a small bundle",
    "ssc splitter train quiet/ --target rpi4 --max-word-recognition 0.2 --max-agreement-lost 0.3 -o table.json":
        "after the audit above; tests/streamsplit_compile/cli/test_audit_command.py does it",
    "ssc server run encoder.pt bundle/ --state server/ --larger larger.pt --calibrate recordings/":
        "two trained encoders; tests/integration/test_cascade.py runs it",
    "ssc server run encoder.pt bundle/ --state server/ --larger larger.pt --calibrate recordings/ --adapt joint":
        "two trained encoders; tests/integration/test_adaptation_of_devices.py runs it",
    "ssc edge run --broker nats://gateway:4222 --device pi-1 --source mic --cascade 0.25 --audio-format opus "
    "--results -":
        "a microphone, and the server above; tests/integration/test_cascade.py runs it on a file",
    "ssc server run encoder.pt bundle/ --state server/ --web 8081":
        "tests/integration/test_page_of_server.py runs it, on a port that is free",
    "ssc server mqtt mqtt://homeassistant.local --state server/":
        "a broker that is not in the project; tests/integration/test_mosquitto.py runs Mosquitto",
    "ssc audit bundle/ --recordings speech_commands/ --samples listen/":
        "an hour; tests/streamsplit_compile/cli/test_audit_command.py audits a small bundle",
    "ssc splitter train bundle/ --target rpi4 --max-word-recognition 0.2 -o table.json":
        "after the audit above; tests/streamsplit_compile/cli/test_audit_command.py does it",
    "ssc edge run --bundle bundle/ --source mic --max-word-recognition 0.2":
        "a microphone, and the audit above; tests/runtime_edge/transport/test_privacy.py has devices with that floor",
    "ssc edge run --bundle bundle/ --watch incoming/ --results results.jsonl":
        "it never ends; tests/integration/test_watch.py runs it",
    "ssc derive encoder.pt --profile device.json --bundle bundle/ --budget-ms 9 --recordings recordings/ -o small.pt":
        "a budget for another board; tests/streamsplit_compile/cli/test_submodel_commands.py measures this machine",
    "ssc server broker --state b1/ --name b1 --cluster-port 6222 --routes host-2:6222,host-3:6222":
        "three machines; tests/integration/test_cluster.py runs three brokers on one",
}  # fmt: skip
"""Commands that no test of an environment types, each with its reason."""


def typed(path: Path) -> Iterator[tuple[str, str]]:
    """The commands of a test file, with its extras."""
    tree = ast.parse(path.read_text())
    names = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    if "EXTRAS" in names:
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        extras = ast.literal_eval(names["EXTRAS"])
        yield from ((text, extras) for text in texts if isinstance(text, str) and text.startswith("ssc "))


def test_every_documented_command_is_typed_by_a_test_or_has_a_reason() -> None:
    known = {found for path in TYPED for found in typed(path)}
    asked = {(found.text, found.extras) for found in documented() if found.page not in FIGURES}

    assert {pair for pair in asked - known if pair[0] not in NOT_TYPED} == set()
    assert known - asked == set(), "no page has these, or not in an environment of these extras"
    assert NOT_TYPED.keys() <= {text for text, _ in asked - known}, "a reason that is no longer needed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_of_some_extra(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    assert [found.text for found in documented() if found.page == name and not found.extras] == []


def test_commands_are_found_with_the_extras_that_their_block_installs() -> None:
    page = (
        "```sh\npip install \"${WHEEL}[edge,audio]\"  # or [x]\nssc a b   # c\nsudo /opt/bin/ssc d && x\n```\n"
        "```sh\ncat x | ssc e \\\n  -f\nsudo $(which ssc) g > h\nssc-edge\n. ~/ssc/bin/activate\n```\n```\nssc i\n```\n"
    )  # fmt: skip
    found = [("ssc a b", "edge,audio"), ("ssc d && x", "edge,audio"), ("ssc e -f", ""), ("ssc g > h", "")]
    assert list(commands_in(page)) == found


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        ("ssc a b", "one"),
        ("ssc a b --c d", "two"),
        ("ssc a b --c e,f", "three"),
        ("ssc a b --c", "two"),
        ("ssc a z", "zero"),
        ("ssc z", ""),
    ],
)
def test_the_longest_entry_that_fits_names_the_extras(command: str, extras: str) -> None:
    table = {"ssc a": "zero", "ssc a b": "one", "ssc a b --c": "two", "ssc a b --c f": "three"}
    assert usual_extras(command, table) == extras
