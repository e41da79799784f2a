"""The module that torchrun starts: `ssc server run` as one of several ranks (see `runtime_server.training.ranks`)."""

from __future__ import annotations

import sys

from streamsplit_compile.cli.main import main

if __name__ == "__main__":
    main(["server", "run", *sys.argv[1:]])
