"""The options of the bench of policies that mean something together."""

from pathlib import Path

import pytest

from tools.bench_lab import parse_args

PROMPT, THRIFTY = ["--prompt", "lte/cut:stem/64+exit"], ["--thrifty", "lora-gateway/packed:layer2/8"]
FROM = ["--from", "bench.json"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([*FROM, *PROMPT], "--prompt and --thrifty: one section compares both, so give both or neither"),
        ([*FROM, *THRIFTY], "--prompt and --thrifty: one section compares both"),
        ([*PROMPT, *THRIFTY], "--prompt: is about measurements that are published, so give them with --from"),
        (THRIFTY, "--thrifty: is about measurements that are published"),
        (["--page", "proof-zero"], "--page: is about measurements that are published"),
        (["--note", "no network"], "--note: is about measurements that are published"),
        ([*FROM, *THRIFTY, "--prompt", "cut:stem"], "--prompt cut:stem: expected a scenario and a policy with a cut"),
        (
            [*FROM, *PROMPT, "--thrifty", "lte/table"],
            "--thrifty lte/table: expected a scenario and a policy with a cut",
        ),
        ([*FROM, *PROMPT, "--thrifty", "lte/cut:"], "--thrifty lte/cut:: expected a scenario and a policy with a cut"),
    ],
)
def test_options_that_mean_nothing_together_are_one_line(arguments, why, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(arguments)
    assert caught.value.code == 2
    assert f"error: {why}" in capsys.readouterr().err.splitlines()[-1]


def test_both_rows_are_published_from_measurements_and_other_benchmarks_options_are_left_alone():
    given = parse_args([*FROM, *PROMPT, *THRIFTY, "--page", "proof-zero", "--note", "no network"])
    assert (given.files, given.prompt, given.thrifty) == ([Path("bench.json")], PROMPT[1], THRIFTY[1])
    assert parse_args(["--quick", "--of-another-benchmark"]).quick
    assert parse_args([]).files == []
