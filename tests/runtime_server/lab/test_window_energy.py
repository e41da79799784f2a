import re

import pytest

from runtime_edge.errors import FormatError
from runtime_server.lab.window_energy import metered_mj


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "meter.csv: no readings; the first line names the columns: time_s,watts"),
        ("time_s,watts\n", "meter.csv: no readings"),
        ("a,b\n1,2\n", "meter.csv: line 2: no column 'time_s'; the columns are time_s,watts"),
        ("time_s,watts\n0,1\n\n1\n", "meter.csv: line 4: watts is empty"),
        ("time_s,watts\r\n0,1\r\n1,high\r\n", "meter.csv: line 3: watts: 'high' is not a number"),
        ("time_s,watts\n0,1\n1,nan\n", "meter.csv: line 3: watts: 'nan' is not a number"),
    ],
)
def test_what_is_wrong_in_a_meters_log_is_named_by_file_and_line(tmp_path, text, message):
    log = tmp_path / "meter.csv"
    log.write_text(text, newline="")
    with pytest.raises(FormatError, match=re.escape(message)):
        metered_mj(log, 0.0, 1.0, windows=2)
