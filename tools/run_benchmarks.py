"""`make bench`: every benchmark in turn.

python -m tools.run_benchmarks [--quick]
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run tools/bench_*.py one after the other."""
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        print(f"== {path.stem}")
        importlib.import_module(f"tools.{path.stem}").main(sys.argv[1:])


if __name__ == "__main__":
    main()
