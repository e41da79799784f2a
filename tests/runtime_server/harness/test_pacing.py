"""What a slower machine's process owes for all that is not a block, in a time that is made up."""

import subprocess
import sys
import threading

from runtime_server.harness.pacing import Debts


class Processor:
    """Time that passes only while something computes."""

    def __init__(self):
        self.now = 0.0

    def clock(self):
        return self.now

    def use_until(self, until):
        self.now = max(self.now, until)


def running(factor):
    """A processor, and what is owed on it from now on."""
    processor = Processor()
    debts = Debts(factor, processor.clock, processor.use_until)
    debts.running = True
    debts.forgive()
    return processor, debts


def test_what_has_been_done_takes_as_many_times_longer_and_is_paid_for_once():
    processor, debts = running(4.0)
    processor.now += 0.5
    debts.pay()
    assert processor.now == 2.0
    debts.pay()
    assert processor.now == 2.0


def test_a_block_is_paid_for_by_its_own_time_and_nothing_before_the_first_one():
    processor = Processor()
    debts = Debts(4.0, processor.clock, processor.use_until)
    processor.now += 10.0  # loading
    debts.pay()
    assert processor.now == 10.0
    debts.running = True
    processor.now += 1.0  # a block, paced by itself
    debts.forgive()
    debts.pay()
    assert processor.now == 11.0


def test_a_faster_machine_owes_nothing():
    processor, debts = running(0.5)
    processor.now += 1.0
    debts.pay()
    assert processor.now == 1.0


def test_each_thread_pays_for_itself():
    processor, debts = running(2.0)
    processor.now += 1.0
    other = threading.Thread(target=debts.pay)  # has done nothing that it knows of
    other.start()
    other.join()
    assert processor.now == 1.0
    debts.pay()
    assert processor.now == 2.0


OWN_LOAD = """
from runtime_server.harness import pacing
pacing.see_own_load()
from runtime_edge.system import CpuMonitor
import threading, time
monitor = CpuMonitor(period_s=0.0)
threading.Event().wait(0.3)
rested = monitor.load()
until = time.monotonic() + 0.3
while time.monotonic() < until:
    pass
print(rested, monitor.load())
"""


def test_a_device_of_the_demo_sees_its_own_load_and_nobody_elses():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        done = subprocess.run([sys.executable, "-c", OWN_LOAD], capture_output=True, text=True, check=True)
    finally:
        busy.kill()
        busy.wait()
    rested, worked = map(float, done.stdout.split())
    assert rested < worked  # however busy this machine is
    assert rested < 0.5
