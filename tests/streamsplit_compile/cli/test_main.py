"""The `ssc` command as its users meet it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from toys import Tiny

from runtime_edge.formats.minisign import SecretKey, write_key_pair
from streamsplit_compile.cli import main as cli

pytestmark = pytest.mark.integration

# Calls one command after the other as the console script does, so that torch is imported only once.
DRIVER = """
import json, os, sys, traceback
from streamsplit_compile.cli.main import main

for index, arguments in enumerate(json.load(sys.stdin)):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{index}.{name}", os.O_WRONLY | os.O_CREAT), number)
    try:
        sys.exit(main(arguments))
    except SystemExit as exc:
        code = exc.code or 0
    except BaseException:
        traceback.print_exc()
        code = "traceback"
    sys.stdout.flush()
    with open(f"{index}.code", "w") as file:
        file.write(str(code))
"""


class Bomb:
    """Unpickling it writes a file."""

    def __reduce__(self):
        return (open, ("executed", "w"))


BAD = {
    "a missing encoder": ("compile missing.pt -o out", "missing.pt: no such file; start with `ssc encoder new"),
    "a directory for an encoder": ("compile bundle -o out", "bundle: a directory, expected a file"),
    "text for an encoder": (
        "compile text.pt -o out",
        "text.pt: text, and neither a checkpoint nor a torch.export archive",
    ),
    "a truncated encoder": ("compile short.pt -o out", "short.pt: cut short after"),
    "a pickled module": ("compile pickled.pt -o out", "pickled.pt: holds more than tensors"),
    "a state_dict alone": ("compile tiny.pt -o out", 'tiny.pt: field "format" is None'),
    "an unknown factory": ("compile tiny.pt --factory no.such:thing -o out", "--factory no.such:thing"),
    "an unknown target": ("compile tiny.pt --factory toys:Tiny --targets vax -o out", "no target 'vax'; there are "),
    "a target file that is none": ("compile tiny.pt --targets text.toml -o out", "text.toml: not TOML"),
    "an unknown cut": ("compile tiny.pt --factory toys:Tiny --cuts nowhere -o out", "--cuts: no cut 'nowhere'"),
    "too many blocks": ("compile tiny.pt --factory toys:Tiny --cuts 99 -o out", "--cuts 99: this encoder can be cut"),
    "no recordings": ("compile tiny.pt --factory toys:Tiny --calibrate gone -o out", "gone: no such file or directory"),
    "a place that is taken": ("compile tiny.pt --factory toys:Tiny -o full", "full: exists and is not a bundle"),
    "a place that cannot be": ("compile tiny.pt --factory toys:Tiny -o text.pt/out", "text.pt/out: "),
    "a key that is none": ("compile tiny.pt --factory toys:Tiny --key text.pt -o out", "text.pt: "),
    "an unknown encoder": ("encoder new vgg -o out.pt", "unknown encoder 'vgg'; registered: "),
    "weights that are not there": (
        "encoder new resnet18 --weights birds -o out.pt",
        "--weights birds: no such file, and no weights come with resnet18",
    ),
    "a config that is no JSON": (
        "encoder new resnet18 --config {depth -o out.pt",
        "--encoder-config: not JSON",
    ),
    "a config that is a list": (
        "encoder new resnet18 --config [1] -o out.pt",
        "--encoder-config: Expected `object`",
    ),
    "a config nested too deep": (
        f'encoder new resnet18 --config {{"a":{"[" * 9999} -o out.pt',
        "--encoder-config: not JSON",
    ),
    "a config that says something twice": (
        'encoder new resnet18 --config {"depth":1,"depth":2} -o out.pt',
        "--encoder-config: key 'depth' appears twice",
    ),
    "a config that does not fit": (
        'encoder new resnet18 --config {"depth":9} -o out.pt',
        "does not accept config",
    ),
    "a missing bundle": ("inspect missing", "missing: no such bundle directory; make one with `ssc compile"),
    "a bundle without manifest": ("inspect full", "full/manifest.json: cannot be read"),
    "a truncated manifest": ("inspect truncated", "truncated/manifest.json: "),
    "a truncated block": ("verify shortened", "model.onnx: "),
    "a flipped byte in a block": ("verify flipped", "model.onnx: digest does not match the manifest"),
    "a flipped byte in a table": (
        "verify tables --pub key.pub",
        "tables/rpi4.json.minisig: the signature does not match",
    ),
    "a missing block": ("verify emptied", "model.onnx: cannot be read"),
    "another key": ("verify bundle --pub other.pub", "bundle/manifest.json.minisig: signed by key "),
    "no signature": ("verify unsigned --pub key.pub", "manifest.json.minisig: missing"),
    "a public key that is none": ("verify bundle --pub text.pt", "text.pt: "),
    "another encoder": ("verify bundle --encoder resnet.pt", "compiled with --factory toys:Tiny; give the same here"),
    "other weights": (
        "verify bundle --encoder warmer.pt --factory toys:Tiny",
        "bundle: compiled from other weights than warmer.pt",
    ),
    "a diff with nothing": ("diff bundle missing", "missing: no such bundle directory"),
    "a key in the way": ("key new -o text.pt", "text.pt: exists; a key is never overwritten"),
    "a base that is none": ("compile tiny.pt --base full -o out", "full/manifest.json: cannot be read"),
    "a base of another encoder": (
        "compile resnet.pt --base bundle -o out",
        "resnet.pt: the bundle was compiled with --factory toys:Tiny; give the same here if they are yours",
    ),
    "a base and what it decides": ("compile tiny.pt --base bundle --cuts all -o out", "--cuts: with --base it is as"),
    "no parity without a base": ("compile tiny.pt --factory toys:Tiny --no-parity -o out", "--no-parity: only with "),
}
GOOD = {
    "inspect": ("inspect bundle --json", "cuts"),
    "verify": ("verify bundle --pub key.pub --json", "self_test_error"),
    "verify again": ("verify bundle --encoder tiny.pt --factory toys:Tiny --json", "parity"),
    "recompile": ("compile tiny.pt --base bundle --factory toys:Tiny -o again --json", "parity"),
    "recompile without proof": ("compile tiny.pt --base bundle --no-parity -o quick --json", "cuts"),
    "diff": ("diff bundle bundle --json", "changed"),
    "encoder list": ("encoder list --json", "resnet18"),
}


def damage(source, target, pattern, change):
    """A copy of a bundle with one file changed."""
    shutil.copytree(source, target)
    path = sorted(target.glob(pattern))[0]
    data = change(path.read_bytes())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_bundle, signing_key, tiny_file, resnet_file):
    """A directory with everything the commands are about."""
    root = tmp_path_factory.mktemp("cli")
    shutil.copy(tiny_file, root / "tiny.pt")
    shutil.copy(resnet_file, root / "resnet.pt")
    weights = torch.load(tiny_file, weights_only=True)
    next(iter(weights.values())).add_(1.0)
    torch.save(weights, root / "warmer.pt")
    (root / "text.pt").write_text("this is text")
    (root / "text.toml").write_text("this is text")
    (root / "short.pt").write_bytes(tiny_file.read_bytes()[:-100])
    torch.save({"format": "streamsplit.encoder/1", "module": Bomb()}, root / "pickled.pt")
    (root / "full").mkdir()
    (root / "full" / "thesis.txt").write_text("years of work")
    write_key_pair(signing_key, root / "key")
    write_key_pair(SecretKey(b"\1" * 8, bytes(32)), root / "other")
    bundle = Path(shutil.copytree(small_bundle.path, root / "bundle"))
    model = "shared_assets/*/model.onnx"
    damage(bundle, root / "truncated", "manifest.json", lambda data: data[:-20])
    damage(bundle, root / "shortened", model, lambda data: data[:-1])
    damage(bundle, root / "flipped", model, lambda data: bytes([data[0] ^ 1]) + data[1:])
    damage(bundle, root / "emptied", model, lambda data: None)
    damage(bundle, root / "unsigned", "manifest.json.minisig", lambda data: None)
    damage(bundle, root / "tables", "tables/rpi4.json", lambda data: data.replace(b"0.", b"1.", 1))
    return root


@pytest.fixture(scope="module")
def calls(place):
    """What every command above gave: (exit code, stdout, stderr) by its arguments."""
    commands = [arguments for arguments, _ in (*BAD.values(), *GOOD.values())]
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.modules[Tiny.__module__].__file__).parent)}
    subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([arguments.split() for arguments in commands]),
        cwd=place,
        env=environment,
        text=True,
        check=True,
        timeout=120,
    )
    read = lambda index, name: (place / f"{index}.{name}").read_text()  # noqa: E731
    return {
        arguments: (read(index, "code"), read(index, "out"), read(index, "err"))
        for index, arguments in enumerate(commands)
    }


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_that_names_it(calls, place, what):
    arguments, message = BAD[what]
    code, out, err = calls[arguments]
    assert err.count("\n") == 1, err
    assert err.startswith("ssc: ")
    assert message in err
    assert code == "2"
    assert "ssc: " not in out
    assert not (place / "out").exists()


def test_nothing_of_a_pickled_module_was_executed(calls, place):
    assert calls
    assert not (place / "executed").exists()


@pytest.mark.parametrize("what", GOOD)
def test_json_is_json_and_nothing_else(calls, what):
    arguments, key = GOOD[what]
    code, out, err = calls[arguments]
    assert code == "0"
    assert [line for line in err.splitlines() if not line.startswith("warning: nothing was measured")] == []
    assert key in json.loads(out)


def commands(command=cli.ssc, path=("ssc",)):
    """Every command and group, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, f"{' '.join(path)} {name} does not exist"
            yield from commands(inner, (*path, name))


def test_the_help_of_every_command_shows_an_example_that_calls_it():
    seen = 0
    for path, command in commands():
        context = click.Context(command, info_name=" ".join(path))
        text = " ".join(command.get_help(context).split())
        assert "Example: " in text, " ".join(path)
        example = text.split("Example: ")[1]
        assert example.startswith(" ".join(path[:2])), example
        seen += 1
    assert seen > 15


def test_every_option_says_what_it_is_for():
    options = [(path, option) for path, command in commands() for option in command.params if option.name != "help"]
    options = [(path, option) for path, option in options if isinstance(option, click.Option)]
    assert len(options) > 100
    assert [(*path, *option.opts) for path, option in options if not option.help] == []


def test_every_command_that_is_listed_can_be_imported():
    for name, (place, text) in cli.all_commands().items():
        module, attribute = place.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), name
        assert text.endswith(".")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("arguments", [["edge", "--help"], ["edge", "run", "--help"], ["--help"], ["--version"]])
def test_what_a_device_calls_never_loads_torch(arguments):
    heavy = {"torch", "onnx", "onnxscript", "onnxruntime", "transformers", "matplotlib", "rich", "scipy"}
    done = run(
        "import sys\n"
        "from streamsplit_compile.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"loaded = {heavy!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "sys.exit(code)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["compile"], "ENCODER.PT"),
        (["inspect"], "BUNDLE"),
        (["inspect", "a", "b"], "(b)"),
        (["edge", "run", "--nonsense"], "--nonsense"),
        (["compile", "encoder.pt", "-o", "out", "--windows", "0"], "--windows"),
    ],
)
def test_wrong_usage_names_the_argument(arguments, named, capfd):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    captured = capfd.readouterr()
    assert caught.value.code == 2
    assert named in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_an_error_is_never_printed_among_the_results(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", None)  # closed
    with pytest.raises(SystemExit) as caught:
        cli.main(["inspect", "nowhere"])
    assert caught.value.code == 2
    assert capfd.readouterr().out == ""


def test_a_missing_package_names_the_extra_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx.helper")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    with pytest.raises(cli.MissingExtra, match=r'onnx is not installed: pip install "streamsplit_audio-.*\[compile\]"'):
        cli.ssc.get_command(click.Context(cli.ssc), "compile")


def test_the_installed_command_is_this_one():
    script = Path(sys.executable).with_name("ssc")
    if not script.exists():
        pytest.skip("ssc is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("ssc")


@pytest.mark.parametrize("arguments", [[], ["--version"], ["doctor"], ["edge", "config"], ["encoder", "list"]])
def test_output_that_cannot_be_written_is_one_line_that_names_it(arguments):
    script = Path(sys.executable).with_name("ssc")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([script, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"ssc: standard output: No space left on device\n")
