"""The container: what its files say, and its steps carried out where there is no Docker.

Not carried out: pulling the pinned base image, building layers, and `docker compose up`. What is asked of Docker is
checked by hadolint and by the schema of Compose.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from dockerfiles import health_command, instructions, run_steps, variables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
SCHEMA = ROOT / "tests" / "data" / "compose-spec.json"
HEALTHY = """
"$@" &
server=$!
trap 'kill -KILL $server' EXIT
n=0
until {health} 2>/dev/null; do n=$((n + 1)); [ $n -lt 300 ] && kill -0 $server; sleep 1; done
id -u
ls -l ssc-server/signing.key
kill -TERM $server
wait $server
trap - EXIT
"""


@pytest.fixture(scope="module")
def found():
    return instructions(DOCKERFILE)


@pytest.fixture(scope="module")
def service():
    (only,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    return only


def test_hadolint_has_nothing_against_it():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_compose_knows_every_key_of_the_file():
    schema = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    assert list(schema.iter_errors(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))) == []
    assert not schema.is_valid({"services": {"server": {"restrat": "always"}}})


def test_base_images_are_pinned_and_the_server_is_nobody_in_particular(found):
    bases = [rest.split()[0] for kind, rest in found if kind == "FROM"]
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases), bases
    user = int(dict(found)["USER"])
    assert user > 0
    assert any(kind == "RUN" and f"--uid {user} " in rest for kind, rest in found)


def test_file_and_compose_agree_on_ports_volume_and_models(found, service):
    last, environment = dict(found), variables(found, "")
    exposed = set(last["EXPOSE"].split())
    assert {port.rpartition(":")[2] for port in service["ports"]} == exposed
    assert {f"{environment['SSC_SERVER_WEB']}".rpartition(":")[2], "4222"} == exposed
    places = dict(reversed(volume.split(":")[:2]) for volume in service["volumes"])
    assert places.keys() == {last["VOLUME"], str(Path(environment["SSC_SERVER_ENCODER"]).parent)}
    assert Path(environment["SSC_SERVER_BUNDLE"]).parent == Path(environment["SSC_SERVER_ENCODER"]).parent
    assert last["VOLUME"] == str(Path(last["WORKDIR"]) / "ssc-server")


def test_what_docker_is_sent_is_what_the_wheel_is_made_of():
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {Path(one).parts[0] for one in built["packages"]}
    assert let_in == needed | {"LICENSE", "README.md", "pyproject.toml"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a root directory takes root and Linux"
)
def test_its_steps_make_a_server_that_serves_is_healthy_and_ends(found, toy, tmp_path):
    context, models = tmp_path / "context", tmp_path / "models"
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        if line.startswith("!"):
            copy = shutil.copytree if (ROOT / line[1:]).is_dir() else shutil.copy
            context.mkdir(exist_ok=True)
            copy(ROOT / line[1:], context / line[1:])
    models.mkdir()
    shutil.copy(toy / "encoder.pt", models)
    shutil.copytree(toy / "bundle", models / "bundle")
    work = tmp_path / "work"
    work.mkdir()
    mounted = [*found, ("RUN", shlex.join(["cp", "-rL", str(models), "/models"]))]  # compose mounts it there

    done = run_steps(mounted, context, work, HEALTHY.replace("{health}", health_command(found)))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "serving generation" in done.stdout
    assert "page on http://" in done.stdout
    assert f"\n{dict(found)['USER']}\n" in done.stdout
    assert "signing.key" in done.stdout
    assert "stopped after 0 windows" in done.stdout
