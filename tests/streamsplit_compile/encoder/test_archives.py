import io
import json
import random
import zipfile
from pathlib import Path

import pytest
import torch
from shapes import GOOD, WINDOW, StaticBatch, make
from toys import Tiny

from runtime_edge.errors import FormatError, UsageError
from streamsplit_compile.encoder import archives
from streamsplit_compile.encoder.encoders import load_encoder
from streamsplit_compile.encoder.quiet import quiet

pytestmark = pytest.mark.integration

MARK = "executed"


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def save(module, path, dynamic=True):
    window = torch.zeros(2 if dynamic else 1, module.window_samples)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with quiet():
        torch.export.save(torch.export.export(module, (window,), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return save(Tiny(), tmp_path_factory.mktemp("archive") / "tiny.pt2")


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that appears if anything of an archive is executed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / MARK


def edited(archive, target, change=None, replace=None, add=None):
    """A copy of an archive; `change` edits model.json, `replace` and `add` are entries by name."""
    replace, add = replace or {}, add or {}
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            root, _, name = entry.filename.partition("/")
            data = replace.get(name, source.read(entry))
            if name == "models/model.json" and change is not None:
                document = json.loads(data)
                change(document)
                data = json.dumps(document)
            copy.writestr(entry.filename, data)
        for name, data in add.items():
            copy.writestr(f"{root}/{name}", data)
    return target


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_an_archive_gives_the_encoder_back(archive):
    encoder = load_encoder(archive, sample_rate=4000)
    waveform = torch.rand(3, 1024)
    with torch.inference_mode():
        assert torch.equal(encoder.graph.module(waveform), Tiny()(waveform))
    assert (encoder.id, encoder.sample_rate, encoder.window_samples) == ("tiny", 4000, 1024)
    assert encoder.graph.dynamic_batch
    assert encoder.tensors.keys() == Tiny().state_dict().keys()
    assert {"stem", "down", "residual", "head"} <= {candidate.name for candidate in encoder.graph.candidates}


def test_an_archive_with_a_fixed_batch_is_read_too(tmp_path):
    encoder = load_encoder(save(Tiny(), tmp_path / "tiny.pt2", dynamic=False))
    assert not encoder.graph.dynamic_batch
    assert encoder.sample_rate == 16000


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_every_kind_of_graph_passes_the_inspection(tmp_path, kind):
    module = make(kind)
    encoder = load_encoder(save(module, tmp_path / "encoder.pt2", dynamic=kind is not StaticBatch))
    window = torch.rand(1, WINDOW)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.graph.module(window.clone()), module(window.clone()), atol=1e-6, rtol=0)


def test_an_archive_may_carry_notes_and_has_any_name(archive, tmp_path):
    target = edited(archive, tmp_path / "encoder.pt", add={"extra/notes.txt": "trained on Tuesday"})
    assert load_encoder(target).id == "encoder"


ENTRIES = [
    "data/constants/custom_obj_0",
    "data/constants/opaque_obj_0",
    "data/constants/opaque_obj_0/tensor_0",
    "data/constants/tensor_0/opaque_obj_0",
    "data/aotinductor/model/model.so",
    "data/weights/../weight_0x",
    "models/other.json",
    "models/model.jsonx",
    "models/model12345",
    "anything",
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_no_tensor_is_refused_by_name(archive, tmp_path, mark, entry):
    target = edited(archive, tmp_path / "bad.pt2", add={entry: pickled(Bomb(mark))})
    with pytest.raises(FormatError, match=f"bad.pt2: entry {entry}: not admitted"):
        load_encoder(target)
    assert not mark.exists()


@pytest.mark.parametrize("entry", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt"])
def test_a_pickle_in_the_place_of_tensors_is_refused_and_never_executed(archive, tmp_path, mark, entry):
    bomb = pickled((Bomb(mark),))
    target = edited(
        archive, tmp_path / "bad.pt2", replace={entry: bomb}, add={} if "sample" in entry else {entry: bomb}
    )
    with pytest.raises(FormatError, match=f"entry {entry}: a pickle with more than tensors"):
        load_encoder(target)
    assert not mark.exists()


def test_a_weight_that_says_it_is_pickled_is_refused_and_never_executed(archive, tmp_path, mark):
    with zipfile.ZipFile(archive) as source:
        config = json.loads(source.read("tiny/data/weights/model_weights_config.json"))
    config["config"]["head.bias"]["use_pickle"] = True
    name = config["config"]["head.bias"]["path_name"]
    replace = {
        "data/weights/model_weights_config.json": json.dumps(config),
        f"data/weights/{name}": pickled(Bomb(mark)),
    }
    target = edited(archive, tmp_path / "bad.pt2", replace=replace)
    with pytest.raises(FormatError, match=r"model_weights_config\.json: a pickled tensor"):
        load_encoder(target)
    assert not mark.exists()


def objects(value):
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects(inner)


EXPRESSIONS = [
    f"open('{MARK}', 'w')",
    f"__import__('os').system('touch {MARK}')",
    f"Symbol('s16').__class__.__base__.__subclasses__() or open('{MARK}', 'w')",
    f"Symbol(open('{MARK}', 'w').name)",
    f"Symbol('s16', positive=open('{MARK}', 'w'))",
    "Symbol('s16', positive=True, integer=True).evalf()",
    f'Max(1, eval(\'open("{MARK}", "w")\'))',
    "lambda: 1",
    "s0; s1",
    "[s0 for s0 in (1,)]",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_that_is_no_size_is_refused_and_never_evaluated(archive, tmp_path, mark, expression):
    def change(document):
        first = next(item for item in objects(document) if "expr_str" in item)
        first["expr_str"] = expression

    with pytest.raises(FormatError, match=r"entry models/model\.json: expression .* is not a plain size expression"):
        load_encoder(edited(archive, tmp_path / "bad.pt2", change))
    assert not mark.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s16', positive=True, integer=True)",
        "2*s0",
        "s0**2 + 1",
        "Max(1, s0//2)",
        "FloorDiv(s77, 4)",
        "Mod(u0, 2)",
    ],
)
def test_sizes_as_torch_writes_them_are_admitted(expression):
    archives.check_expression(expression, "here")


@pytest.mark.parametrize(
    "expression",
    [
        "2**2**2**2**2**2",
        "9**9999999999",
        "((((2**16)**16)**16)**16)**16",
        "Pow(Integer(10), Integer(1000000000))",
        "s0**s1",
        "1<<s0",
        "Mul(" + ", ".join(["s0"] * 100) + ")",
        "(" * 300 + "s0" + ")" * 300,
        "1+" * 600 + "1",
    ],
)
def test_a_size_that_takes_minutes_to_evaluate_is_refused(expression):
    with pytest.raises(FormatError, match=r"is too large a size|is not a plain size expression"):
        archives.check_expression(expression, "here")


OPERATORS = ["torch.os.system", "torch.load", "torch.hub.load", "torch.ops.aten.from_file.default", "_operator.call"]


@pytest.mark.parametrize(
    "operator", [*OPERATORS, "_operator.methodcaller", "torch.ops.inductor.x.default", "#ns:op", ""]
)
def test_an_operator_from_elsewhere_is_refused_and_never_called(archive, tmp_path, mark, operator):
    def change(document):
        node = document["graph_module"]["graph"]["nodes"][0]
        node["target"] = operator
        node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {MARK}"}, "kind": 1}]

    with pytest.raises(FormatError, match=r"entry models/model\.json: operator .* is not one of torch\.ops\.aten"):
        load_encoder(edited(archive, tmp_path / "bad.pt2", change))
    assert not mark.exists()


def test_a_container_that_imports_a_module_is_refused(archive, tmp_path, mark):
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")

    def defaultdict(document):
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps({"default_factory_module": "evil", "default_factory_name": "x", "dict_context": []})
        spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
        signature["out_spec"] = json.dumps([1, spec])

    def enum(document):
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        context = json.dumps([{"__enum__": True, "fqn": "evil:X", "name": "Y"}])
        leaf = {"type": None, "context": None, "children_spec": []}
        signature["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": [leaf]}])

    for change in (defaultdict, enum):
        with pytest.raises(FormatError, match="a container that is not a tuple, list or dictionary"):
            load_encoder(edited(archive, tmp_path / "bad.pt2", change))
    assert not mark.exists()


def test_guards_are_never_executed(archive, tmp_path, mark):
    def change(document):
        document["guards_code"] = [f"open('{MARK}', 'w')"]

    encoder = load_encoder(edited(archive, tmp_path / "guarded.pt2", change))
    encoder.graph.module(torch.zeros(1, 1024))
    assert not mark.exists()


def test_a_compressed_archive_is_refused_so_that_it_cannot_be_a_bomb(archive, tmp_path):
    target = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in source.infolist():
            copy.writestr(entry.filename, source.read(entry))
    with pytest.raises(FormatError, match="compressed"):
        load_encoder(target)


def test_damaged_archives_are_refused_in_one_line(archive, tmp_path):
    """Or read, where a flip hits a weight or what nobody looks at; nothing else may come of it."""
    rng, data, target = random.Random(0), archive.read_bytes(), tmp_path / "damaged.pt2"
    refused = 0
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        target.write_bytes(changed)
        try:
            load_encoder(target)
        except (FormatError, UsageError) as error:
            refused += 1
            message = str(error)
            assert "\n" not in message, message
    assert refused > 20


def test_truncated_archives_are_refused(archive, tmp_path):
    data, target = archive.read_bytes(), tmp_path / "short.pt2"
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        target.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"short\.pt2: "):
            load_encoder(target)


def test_missing_entries_are_refused(archive, tmp_path):
    with zipfile.ZipFile(archive) as source:
        names = [entry.filename for entry in source.infolist()]
        for missing in names:
            target = tmp_path / "partial.pt2"
            with zipfile.ZipFile(target, "w") as copy:
                for name in names:
                    if name != missing:
                        copy.writestr(name, source.read(name))
            needed = "weights/" in missing or "models/" in missing or "constants/" in missing or "sample" in missing
            if needed:
                with pytest.raises(FormatError, match=r"partial\.pt2: "):
                    load_encoder(target)


def test_what_is_admitted_is_what_torch_reads(archive, tmp_path):
    """Two entries of one name: whichever is read, it has been inspected."""
    bad = json.dumps({"expr_str": f"open('{MARK}', 'w')"})
    with pytest.warns(UserWarning, match="Duplicate name"):
        target = edited(archive, tmp_path / "twice.pt2", add={"models/model.json": bad})
    with pytest.raises(FormatError, match="is not a plain size expression"):
        load_encoder(target)


def test_a_checkpoint_is_no_archive(resnet_file, archive):
    assert not archives.is_archive(resnet_file)
    assert archives.is_archive(Path(archive))
