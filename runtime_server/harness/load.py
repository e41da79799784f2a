"""Another program on the device's processor: busy for the share of time that it reads from standard input.

    python -m runtime_server.harness.load 1        (the processor; then lines such as 0.6)

It ends when its input does, so it never outlives the program that feeds it.
"""

from __future__ import annotations

import sys
import threading
import time

from runtime_server.harness.child import become_child
from runtime_server.harness.pacing import use_processor_until

_PERIOD_S = 0.05


def main(cores: list[int]) -> None:
    """Run until standard input ends."""
    become_child(cores)
    share, ended = [0.0], threading.Event()
    threading.Thread(target=_listen, args=(share, ended), daemon=True).start()
    while not ended.is_set():
        began = time.monotonic()
        use_processor_until(time.thread_time() + share[0] * _PERIOD_S)
        ended.wait(max(0.0, began + _PERIOD_S - time.monotonic()))


def _listen(share: list[float], ended: threading.Event) -> None:
    for line in sys.stdin:
        share[0] = min(max(float(line), 0.0), 1.0)
    ended.set()


if __name__ == "__main__":
    main([int(core) for core in sys.argv[1:]])
