"""Today's compiler makes the bundles that an earlier version made, to the byte.

python -m pytest tests/golden/test_bundles.py --all-encoders                              all of them, in some minutes
python -m pytest tests/golden/test_bundles.py --all-encoders --renew-golden VERSION       record today's
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden_bundles import CASES, compile_case, digests, made_with

pytestmark = pytest.mark.integration
QUICK = ("mobilenet_v3_small", "resnet18")
RECORD = Path(__file__).parents[1] / "data" / "golden" / "bundles.json"
"""By case: the version that made it, what it was made with, and the bundle's digests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
# Kaldi's 128 bands over 257 bins have an empty one; AST was trained with it.
@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")
def test_a_shipped_encoder_compiles_to_the_recorded_bytes(
    name: str, request: pytest.FixtureRequest, renew_golden: str | None, tmp_path: Path
) -> None:
    if name not in QUICK and not request.config.getoption("--all-encoders"):
        pytest.skip("takes up to a minute: give --all-encoders")
    case = CASES[name]
    tools = made_with(case)
    if missing := [tool for tool, version in tools.items() if not version]:
        pytest.skip(f"{', '.join(missing)}: not installed")
    if renew_golden:
        _record(name, {"made_by": renew_golden, "made_with": tools, **digests(compile_case(case, tmp_path))})
        pytest.skip(f"recorded {name} in {RECORD}")
    recorded = json.loads(RECORD.read_text())[name]
    if other := [
        f"{tool} {was}, here {tools[tool]}" for tool, was in recorded["made_with"].items() if was != tools[tool]
    ]:
        pytest.skip(f"the digests hold for {'; '.join(other)}: renew them with --renew-golden")
    found = digests(compile_case(case, tmp_path))
    assert {field: recorded[field] for field in found} == found


def _record(name: str, entry: dict[str, Any]) -> None:
    content = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps({**content, name: entry}, indent=1, sort_keys=True) + "\n")
