"""`ssc splitter merge`: which of the records on the broker are merged."""

from msgspec.structs import replace

from runtime_edge.formats.records.learnt import Learnt
from runtime_server.cli.device_table_commands import readable


def test_a_record_that_cannot_be_merged_is_left_out_and_named(small_bundle):
    (target, *_) = small_bundle.manifest.info.targets
    table = small_bundle.table(target)
    own = Learnt(device="pi-1", target=target, table=table.digest, cells=[(0, 0, 0.5, 3)])
    deep = b'{"cells":' + b"[" * 50_000
    found = {
        "pi-1": own.to_json(),
        "pi-2": replace(own, device="pi-2", cells=[(len(table.q), 0, 0.5, 3)]).to_json(),
        "pi-3": b"\xff" * 10,
        "pi-4": deep,
        "pi-5": own.to_json(),
        "pi-6": replace(own, device="pi-6", table="sha256:" + "0" * 64).to_json(),
        "pi-7": replace(own, device="pi-7", cells=[(0, 0, 0.5, 1 << 60)]).to_json(),
        "pi-8": b"",
        "m2-1": replace(own, device="m2-1", target="elsewhere", table="sha256:" + "0" * 64).to_json(),
    }
    records, left_out = readable(found, table)
    assert [record.device for record in records] == ["pi-1"]
    assert list(left_out) == ["pi-2", "pi-3", "pi-4", "pi-5", "pi-6", "pi-7", "pi-8"]
    assert "learnt on another table (sha256:000000000000...)" in left_out["pi-6"]
    assert all(why.startswith(f"learnt values of {name}: ") for name, why in left_out.items())
