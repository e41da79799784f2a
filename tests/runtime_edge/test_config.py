import pytest

from runtime_edge.config import DeviceConfig, LabelRule, label_rules
from runtime_edge.errors import UsageError
from runtime_edge.settings import load


def test_a_rule_takes_from_the_usual_one_what_it_does_not_say():
    config = load(DeviceConfig, None, {"event_hold_s": 4.0, "event_threshold": 0.7, "event_rules": ("rain: min_s=5",)})
    assert config.usual_rule == LabelRule(4.0, 0.0, 0.7)
    assert config.label_rules == {"rain": LabelRule(4.0, 5.0, 0.7)}


def test_a_label_may_have_spaces_and_colons():
    assert label_rules([" a: b :threshold=0.5  hold_s=1 "]) == {"a: b": LabelRule(1.0, 0.0, 0.5)}


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["rain"], "event rule 'rain': write a label, a colon and settings, such as 'rain: threshold=0.9"),
        (["rain:"], "event rule 'rain:': write a label"),
        ([": min_s=1"], "event rule ': min_s=1': write a label"),
        (["rain: hold=1"], "'hold=1' is none of hold_s, min_s, threshold"),
        (["rain: min_s=-1"], "min_s is '-1'; give a number from 0 to 3600"),
        (["rain: min_s=nan"], "min_s is 'nan'; give a number"),
        (["rain: threshold=loud"], "threshold is 'loud'; give a number from 0 to 1"),
        (["rain: min_s=1", "rain: hold_s=1"], "'rain' has a rule already; put all into one"),
    ],
)
def test_a_wrong_rule_is_one_line_that_names_it(lines, problem):
    with pytest.raises(UsageError, match="event rule") as caught:
        load(DeviceConfig, None, {"event_rules": tuple(lines)})
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_in_a_file_the_file_and_the_key_are_named(tmp_path):
    path = tmp_path / "edge.toml"
    path.write_text('event_rules = ["rain"]\n')
    with pytest.raises(UsageError, match=r"edge.toml: event_rules: event rule 'rain': write a label"):
        load(DeviceConfig, path, {})
