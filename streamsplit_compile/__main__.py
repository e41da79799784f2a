"""`python -m streamsplit_compile`: the `ssc` command."""

from __future__ import annotations

from streamsplit_compile.cli.main import main

if __name__ == "__main__":
    main()
