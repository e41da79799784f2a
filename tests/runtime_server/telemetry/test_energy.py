"""Sources of joules: fake counters that move, stand still, start again or may not be read."""

import ctypes
from pathlib import Path

import pytest

from runtime_edge.errors import FormatError, UsageError
from runtime_edge.measure.rapl import Rapl, burn
from runtime_server.telemetry.energy import CpuSeconds, Nvml, energy_source
from streamsplit_compile.cost.targets import load_target


class Machine:
    """A `powercap` tree whose counters a load moves."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def zone(self, path: str, name: str, microjoules: int, most: int = 262_143_328_850) -> None:
        folder = self.root / path
        folder.mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text(f"{most}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")

    def use(self, path: str, microjoules: int) -> None:
        counter = self.root / path / "energy_uj"
        most = int((self.root / path / "max_energy_range_uj").read_text())
        counter.write_text(f"{(int(counter.read_text()) + microjoules) % most}\n")

    def load(self) -> None:
        self.use("intel-rapl:0", 1_000_000)


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.zone("intel-rapl:0", "package-0", 5_000_000)
    return made


def opened(machine, **settings):
    return Rapl(root=machine.root, load=machine.load, **settings)


def test_rapl_counts_packages_and_memory_once_each(machine):
    machine.zone("intel-rapl:0:0", "core", 100)
    machine.zone("intel-rapl:0:1", "dram", 200)
    machine.zone("intel-rapl:1", "package-1", 300)
    machine.zone("intel-rapl:2", "psys", 400)
    source = opened(machine, idle_w=20.0)
    assert source.name == "RAPL of package-0, dram, package-1"
    assert source.idle_w == 20.0
    before = source.joules()
    for path in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl:2"):
        machine.use(path, 2_500_000)
    assert source.joules() - before == pytest.approx(3 * 2.5)


def test_a_counter_that_starts_again_goes_on(tmp_path):
    machine = Machine(tmp_path)
    machine.zone("intel-rapl:0", "package-0", 9_500_000, most=10_000_000)
    source = opened(machine)  # the load takes it over the end
    assert int((tmp_path / "intel-rapl:0" / "energy_uj").read_text()) == 500_000
    before = source.joules()
    for _ in range(7):
        machine.use("intel-rapl:0", 6_000_000)
        source.joules()
    assert source.joules() - before == pytest.approx(42.0)


def test_a_counter_that_stands_still_under_load_is_no_source(machine):
    with pytest.raises(UsageError, match=r"does not move while a core works; choose another source"):
        Rapl(root=machine.root, load=lambda: None)


def test_what_may_not_be_read_is_named_with_the_remedy(machine, monkeypatch):
    counter, read = machine.root / "intel-rapl:0" / "energy_uj", Path.read_text

    def refused(path, *given, **named):
        if path == counter:
            raise PermissionError(13, "Permission denied")
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", refused)  # for root nothing is forbidden
    with pytest.raises(UsageError) as caught:
        opened(machine)
    assert f"this user may not read {counter}; run `sudo chmod a+r {counter}`" in str(caught.value)


def test_no_counters_a_gone_one_and_garbage_are_one_line_each(tmp_path, machine):
    with pytest.raises(UsageError, match="has no package of intel-rapl"):
        Rapl(root=tmp_path / "none")
    source = opened(machine)
    counter = machine.root / "intel-rapl:0" / "energy_uj"
    counter.write_text("nonsense")
    with pytest.raises(UsageError, match=r"energy_uj says 'nonsense', a number of microjoules was expected"):
        source.joules()
    counter.unlink()
    with pytest.raises(UsageError, match=r"energy_uj: No such file or directory"):
        source.joules()


class Library:
    """NVIDIA's library with two GPUs; a load takes 3 J of each."""

    def __init__(self, failing="", moving=True):
        self.used, self.failing, self.moving = [7_000, 9_000], failing, moving

    def load(self):
        if self.moving:
            self.used = [used + 3_000 for used in self.used]

    def __getattr__(self, name):
        def call(*arguments):
            if name == self.failing:
                return 3
            if name == "nvmlDeviceGetCount_v2":
                arguments[0].contents.value = 2
            elif name == "nvmlDeviceGetHandleByIndex_v2":
                arguments[1].contents.value = 100 + arguments[0].value
            elif name == "nvmlDeviceGetTotalEnergyConsumption":
                arguments[1].contents.value = self.used[arguments[0].value - 100]
            return 0

        return call


def test_nvml_counts_every_gpu():
    library = Library()
    source = Nvml(5.0, library.load, library)
    assert source.name == "NVML of 2 GPUs"
    before = source.joules()
    library.load()
    assert source.joules() - before == pytest.approx(6.0)


def test_an_nvml_without_counter_or_library_is_no_source(monkeypatch):
    def missing(name):
        raise OSError(name)

    for failing in ("nvmlInit_v2", "nvmlDeviceGetTotalEnergyConsumption"):
        with pytest.raises(UsageError, match=f"{failing} failed with code 3"):
            Nvml(library=Library(failing))
    still = Library(moving=False)
    with pytest.raises(UsageError, match="does not move"):
        Nvml(None, still.load, still)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UsageError, match=r"libnvidia-ml.so.1 is not there"):
        Nvml()


def test_cpu_seconds_cost_what_the_target_says():
    target, now = load_target("rpi4"), {"cpu": 10.0, "clock": 100.0}
    source = CpuSeconds(target, cpu=lambda: now["cpu"], clock=lambda: now["clock"])
    now.update(cpu=13.0, clock=110.0)
    idle, active = target.power.idle_w.value, target.power.active_w.value
    assert source.joules() == pytest.approx(3.0 * (active - idle) / target.threads + 10.0 * idle)
    assert source.idle_w == idle
    assert "of rpi4" in source.name
    assert "CPU seconds" in source.name


def test_the_choice_opens_its_source(machine, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = {"root": machine.root, "load": machine.load}
    assert energy_source("none", **settings) is None
    assert isinstance(energy_source("rapl", 3.0, **settings), Rapl)
    assert energy_source("auto", 3.0, **settings).idle_w == 3.0
    assert isinstance(energy_source("rpi4"), CpuSeconds)
    assert not caplog.records
    assert energy_source("auto", root=tmp_path / "none") is None
    assert "the energy of training is not counted: --meter rapl:" in caplog.text


def test_a_choice_that_cannot_be_is_one_error(tmp_path):
    with pytest.raises(UsageError, match="no package of intel-rapl"):
        energy_source("rapl", root=tmp_path)
    with pytest.raises(UsageError, match="no target 'abacus'; there are"):
        energy_source("abacus")
    with pytest.raises(UsageError, match="--idle-watts: rpi4 has its own"):
        energy_source("rpi4", 3.0)
    with pytest.raises(FormatError, match=r"none.csv: cannot be read"):
        energy_source(str(tmp_path / "none.csv"))


def test_the_load_lasts_a_moment():
    ticks = iter([0.0, 0.1, 0.2, 0.3, 0.4])
    burn(lambda: next(ticks))
    assert list(ticks) == [0.4]
