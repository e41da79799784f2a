"""`ssc inspect FILE` says what a table, head, adaptation or sub-model is, and refuses anything else by its format."""

import json
from pathlib import Path

import pytest
from example_records import adaptation, submodel

from runtime_edge.errors import FormatError, HeadError
from runtime_edge.formats.records.head import Head
from streamsplit_compile.cli.main import main
from streamsplit_compile.cli.tables.record_tables import record_summary

RECORDS = Path(__file__).parents[3] / "data" / "golden" / "0.2.0" / "records"


def inspected(path, capsys):
    """As JSON, and as a person sees it."""
    main(["inspect", str(path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == path.stat().st_size
    main(["inspect", str(path)])
    return said, capsys.readouterr().out


def test_a_head(capsys):
    said, table = inspected(RECORDS / "head.json", capsys)
    head = Head.from_json((RECORDS / "head.json").read_bytes(), "head.json")
    assert (said["kind"], said["model"], said["labels"]) == ("head", head.model, list(head.labels))
    assert said["validation"]["accuracy"] == head.validation.accuracy
    assert not {"weights", "bias"} & said.keys()
    assert "dog, rain" in table


def test_a_table(capsys):
    said, table = inspected(RECORDS / "table.json", capsys)
    assert (said["kind"], said["target"], said["states"]) == ("table", "rpi4", 2)
    assert said["upgraded_from"] is None
    assert said["digest"] in table


def test_an_adaptation(tmp_path, capsys):
    path = tmp_path / "adaptation.json"
    path.write_bytes(adaptation().to_json())
    said, table = inspected(path, capsys)
    assert said["channels"] == {"stem.norm": 2, "down.norm": 2}
    assert (said["kind"], said["model"], said["digest"]) == ("adaptation", adaptation().model, adaptation().digest)
    assert "down.norm: 2" in table


def test_a_sub_model(small_bundle, tmp_path, capsys):
    path, model = tmp_path / "half.json", submodel(small_bundle.manifest)
    path.write_bytes(model.to_json())
    said, table = inspected(path, capsys)
    assert said["modules"] == {"stem": "2 of 4", "residual": "0 of 4"}
    assert said["asset_bytes"] == sum(model.assets().values())
    assert (said["kind"], said["generation"], said["digest"]) == ("submodel", 1, model.digest)
    assert "bottleneck at stem, decoder at stem" in table


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b'{"format": "streamsplit.encoder/1"}', FormatError, "format: 'streamsplit.encoder/1'; expected that of a"),
        (b'{"format": 1}', FormatError, "format"),
        (b"{}", FormatError, "format"),
        (b"no JSON", FormatError, "not JSON"),
        (b'{"format": "streamsplit.head/2"}', HeadError, "missing required field"),
    ],
)  # fmt: skip
def test_what_is_none_of_them_is_refused_by_file_and_field(tmp_path, content, error, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        record_summary(path)
    assert str(caught.value).startswith(f"{path}: ")
