"""What each way of running a bundle would cost, and what to do."""

import pytest
from msgspec.structs import replace

from runtime_edge.errors import UsageError
from runtime_edge.formats.bundle import open_bundle
from streamsplit_compile.advice.advice import DEVICE_ONLY, TABLE, TIE, Advice, Estimate, advise
from streamsplit_compile.cost.radios import radio_on
from streamsplit_compile.cost.targets import load_target
from streamsplit_compile.splitter.pricing import bundle_actions

HOURS_OF_A_MONTH = 30 * 24


@pytest.fixture(scope="module")
def over_lte(small_bundle):
    (advice,) = advise(open_bundle(small_bundle.path), [load_target("rpi4")], "lte")
    return advice


def estimate(policy, reward, **figures):
    usual = {
        "first_ms": 10.0, "final_ms": 20.0, "up_bytes": 1000.0, "down_bytes": 500.0, "above_idle_mj": 30.0,
        "idle_mj": 1350.0, "agreement": 0.99, "memory_mb": 5.0, "hop_s": 0.5,
    }  # fmt: skip
    return Estimate(policy=policy, reward=reward, **{**usual, **figures})


def test_a_month_is_thirty_days_of_windows_and_idle_power_lasts_all_of_it():
    one = estimate("x", 1.0)
    windows = HOURS_OF_A_MONTH * 3600 / 0.5
    assert one.gb_a_month() == pytest.approx(1500 * windows / 1e9)
    assert one.gb_a_month(0.25) == pytest.approx(one.gb_a_month() / 4)
    assert one.wh_a_month() == pytest.approx((30 + 1350) * windows / 3.6e6)
    assert one.wh_a_month(0.5) == pytest.approx((15 + 1350) * windows / 3.6e6)
    assert one.battery_hours(one.wh_a_month()) == pytest.approx(HOURS_OF_A_MONTH)


def test_all_policies_are_there_and_each_costs_what_the_table_says_of_it(over_lte, small_bundle):
    names = [one.policy for one in over_lte.estimates]
    assert {DEVICE_ONLY, TABLE, "PCM", "FLAC"} <= set(names)
    assert [line.partition(":")[0] for line in over_lte.left_out] == ["Opus 6", "Opus 16", "Opus 24"]
    costs = small_bundle.table("rpi4").costs
    alone = over_lte.of(DEVICE_ONLY)
    assert alone.above_idle_mj == pytest.approx(costs[-1].device_mj, rel=0.01), "its radio sleeps"
    assert alone.up_bytes + alone.down_bytes < 30
    assert alone.first_ms == alone.final_ms
    radio = radio_on(load_target("rpi4"), "lte")
    assert over_lte.of("PCM").above_idle_mj > radio.uplink(over_lte.of("PCM").hop_s).message_mj, (
        "the radio is never asleep"
    )
    assert over_lte.of("PCM").up_bytes > over_lte.of("FLAC").up_bytes


def test_what_a_link_cannot_carry_is_left_out_with_its_reason(small_bundle):
    (advice,) = advise(open_bundle(small_bundle.path), [load_target("rpi4")], "lora")
    assert "PCM" not in [one.policy for one in advice.estimates]
    assert any(line.startswith("PCM: needs 0.") and line.endswith("the link has 0.05") for line in advice.left_out)


def test_a_device_with_an_encoder_this_small_runs_all_of_it_over_lte(over_lte):
    assert over_lte.best.policy == DEVICE_ONLY
    assert "rpi4 over lte: run everything on the device (`ssc edge run --min-cut local`)" in over_lte.sentence()


@pytest.mark.parametrize(
    ("rewards", "best", "words"),
    [
        ({DEVICE_ONLY: 9.0, TABLE: 9.0 + TIE / 2, "Opus 16": 5.0}, DEVICE_ONLY, "run everything on the device"),
        ({DEVICE_ONLY: 5.0, TABLE: 8.0, "features/32": 8.0 + TIE / 2}, TABLE, "let the table choose"),
        ({DEVICE_ONLY: 5.0, TABLE: 7.0, "features/32": 8.0}, "features/32", "cut at features/32 and nowhere else"),
        ({DEVICE_ONLY: 5.0, TABLE: 7.0, "Opus 16": 8.0}, "Opus 16", "--audio-format opus --opus-kbps 16`"),
        ({DEVICE_ONLY: 5.0, TABLE: 7.0, "FLAC": 8.0}, "FLAC", "--audio-format flac`"),
        ({DEVICE_ONLY: 5.0, TABLE: 7.0, "out": 8.0}, "out", "ship its embeddings (`ssc edge run --min-cut out`)"),
    ],
)
def test_the_simplest_of_about_equal_policies_is_advised(rewards, best, words):
    estimates = tuple(estimate(policy, reward) for policy, reward in rewards.items())
    advice = Advice("rpi4", "lte", estimates, "predicted", "out", ())
    assert advice.best.policy == best
    assert words in advice.sentence()


def test_the_sentence_does_without_what_was_left_out_and_counts_the_time_it_listens():
    alone = Advice("rpi4", "lora", (estimate(DEVICE_ONLY, 5.0),), "predicted", "out", ())
    assert alone.sentence().startswith("rpi4 over lora: run everything on the device")
    assert "table" not in alone.sentence()
    shipped = Advice("rpi4", "lora", (estimate("Opus 6", 5.0),), "predicted", "out", ())
    assert "The next best" not in shipped.sentence()
    assert "7.8 GB a month" in shipped.sentence()
    assert "0.78 GB a month" in shipped.sentence(0.1)


def test_what_does_not_fit_into_memory_is_left_out(small_bundle):
    target = load_target("rpi4")
    memory = replace(target.memory, ram_mb=replace(target.memory.ram_mb, value=0.001))
    (advice,) = advise(open_bundle(small_bundle.path), [replace(target, memory=memory)], "wifi")
    assert DEVICE_ONLY not in [one.policy for one in advice.estimates]
    assert any("of memory, rpi4 has 0" in line for line in advice.left_out)


def test_a_target_the_bundle_is_not_for_is_named(small_bundle):
    with pytest.raises(UsageError, match="--target jetson-orin-nano: this bundle was compiled for"):
        advise(open_bundle(small_bundle.path), [load_target("jetson-orin-nano")], "wifi")


def test_widths_that_agree_too_little_are_left_out_with_the_reason(calibrated_bundle, monkeypatch):
    costs = bundle_actions(calibrated_bundle.manifest, "rpi4")
    worse = [replace(one, quality=(0.5,)) if one.width == 8 else one for one in costs]
    monkeypatch.setattr("streamsplit_compile.advice.advice.bundle_actions", lambda *_: worse)
    (advice,) = advise(calibrated_bundle, [load_target("rpi4")], "wifi")
    (line,) = [line for line in advice.left_out if "bottleneck" in line]
    names = line.partition(":")[0].split(", ")
    assert "stem/8" in names
    assert line.endswith(": agrees less by more than 0.005 than without a bottleneck")
    assert not any(advice.of(name) for name in names)
