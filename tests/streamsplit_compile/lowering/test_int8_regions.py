from streamsplit_compile.lowering.int8_regions import Kind, Operation, int8_operations, operations_before_log


def graph(*lines):
    """`kind inputs > output` for each operation, for example `layer a > b`."""
    operations = []
    for line in lines:
        left, _, result = line.partition(">")
        kind, *inputs = left.split()
        operations.append(Operation(Kind[kind.upper()], tuple(inputs), (result.strip(),)))
    return operations


def test_layers_and_what_stands_between_them_are_int8():
    block = graph("between in > a", "layer a > b", "between b > c", "layer c > d", "between d b > out")
    assert int8_operations(block, "in", "out") == {0, 1, 2, 3, 4}


def test_what_a_logarithm_is_computed_from_stays_float():
    block = graph("layer in > spectrum", "between spectrum > mel", "log mel > image", "layer image > out")
    assert int8_operations(block, "in", "out") == {3}
    assert operations_before_log(block) == {0, 1, 2}


def test_a_sum_next_to_a_float_operation_stays_float_and_so_does_what_hangs_on_it():
    block = graph(
        "layer in > a",
        "between a in > b",
        "between b > c",
        "other c > d",
        "layer d > e",
        "between e > f",
        "other f > out",
    )
    assert int8_operations(block, "in", "out") == {0, 4}


def test_squares_stay_float():
    block = graph("layer in > a", "between a a > b", "layer b > out")
    assert int8_operations(block, "in", "out") == {0, 2}


def test_a_block_without_layers_has_nothing_to_gain():
    assert int8_operations(graph("between in > a", "between a > out"), "in", "out") == set()
    assert int8_operations([], "in", "in") == set()
