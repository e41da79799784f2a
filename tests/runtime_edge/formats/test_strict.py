from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from runtime_edge.errors import BundleError, FormatError, TableError
from runtime_edge.formats import strict


class Part(strict.Strict, frozen=True):
    size: Annotated[int, Meta(ge=0)]
    parts: list["Part"] = msgspec.field(default_factory=list)

    def __post_init__(self):
        if self.size == 13:
            raise TableError("size: 13\nis not allowed")


@pytest.mark.parametrize(
    ("form", "data"),
    [("JSON", b'{"size": 3}'), ("MessagePack", msgspec.msgpack.encode({"size": 3})), ("TOML", b"size = 3")],
)
def test_each_form_is_read(form, data):
    assert strict.decode(data, Part, "x", 100, form=form) == Part(size=3)


@pytest.mark.parametrize(
    ("form", "data", "problem"),
    [
        ("JSON", b"{", "not JSON"),
        ("JSON", b'{"\xff": 1}', "not JSON"),
        ("JSON", b'{"size": 1, "parts": [' * 50_000, "not JSON"),
        ("MessagePack", b"\xc1", "not MessagePack"),
        ("TOML", b"size =", "not TOML"),
        ("TOML", b"size = '\xff'", "not TOML"),
        ("JSON", b'{"size": -1}', r"Expected `int` >= 0 - at `\$\.size`"),
        ("JSON", b'{"size": 1, "sice": 1}', "`sice`"),
        ("JSON", b'{"size": 13}', "size: 13 is not allowed"),
        ("JSON", b'{"size": 1, "size": 2}', "key 'size' appears twice"),
        ("JSON", b'{"size": 1, "s\\u0069ze": 2}', "key 'size' appears twice"),
        ("JSON", b'{"size": 1, "parts": [{"size": 1, "size": 1}]}', "key 'size' appears twice"),
        ("JSON", b" " * 2_000_000, "2000000 bytes, more than 1500000"),
    ],
)
def test_whatever_is_wrong_is_one_line_with_source_field_and_fix(form, data, problem):
    with pytest.raises(TableError, match=rf"^a\.file: .*{problem}.*") as caught:
        strict.decode(data, Part, "a.file", 1_500_000, TableError, form, fix="; make it again")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; make it again") == ("bytes, more" not in problem)


def test_a_file_names_itself(tmp_path):
    path = tmp_path / "part.json"
    path.write_text('{"size": 4}')
    assert strict.read(path, Part, 100) == Part(size=4)
    path.write_text('{"size": 4.5}')
    with pytest.raises(BundleError, match=r"part\.json: .*size"):
        strict.read(path, Part, 100, BundleError)
    with pytest.raises(FormatError, match=r"part\.json: .*more than the 3 allowed"):
        strict.read(path, Part, 3)


@pytest.mark.parametrize("name", ["", "rpi4\n", "rpi4\x1b[2J", "rpi\u202e4", "rpi\u20664", "rpi4\u200b", "\ufeffrpi4"])
def test_a_name_that_does_not_read_as_what_it_is_is_refused(name):
    with pytest.raises(FormatError, match="x: Expected `str`"):
        strict.decode(msgspec.json.encode(name), strict.Name, "x", 100)


def test_names_in_other_scripts_are_read():
    for name in ("layer4.0", "Säge", "گربه", "猫"):
        assert strict.decode(msgspec.json.encode(name), strict.Name, "x", 100) == name
