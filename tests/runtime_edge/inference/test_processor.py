"""Which processor this is is read from the kernel, and compared with what a target's is called."""

import pytest

from runtime_edge.inference.processor import is_target, processor


def test_a_board_is_named_before_its_processor(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Cortex-A72\nmodel name\t: Cortex-A72\n")
    assert processor(tmp_path) == "Cortex-A72"
    (tmp_path / "device-tree").mkdir()
    (tmp_path / "device-tree" / "model").write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    assert processor(tmp_path) == "Raspberry Pi 4 Model B Rev 1.4"


@pytest.mark.parametrize(
    ("target", "name", "architecture", "expected"),
    [
        ("rpi4", "Raspberry Pi 4 Model B Rev 1.4", "aarch64", True),
        ("rpi4", "Raspberry Pi Compute Module 4 Rev 1.0", "armv7l", True),
        ("rpi4", "Raspberry Pi 5 Model B Rev 1.0", "aarch64", False),
        ("rpi4", "", "aarch64", True),  # in a container, which hides the board
        ("rpi4", "Intel(R) Xeon(R) Processor", "x86_64", False),
        ("rpi4", "", "x86_64", False),
        ("rpi5", "Raspberry Pi 5 Model B Rev 1.0", "aarch64", True),
        ("rpi-zero-2w", "Raspberry Pi Zero 2 W Rev 1.0", "aarch64", True),
        ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit", "aarch64", True),
        ("m2", "Apple M2 Pro", "arm64", True),
        ("m2", "Apple M1", "arm64", False),
        ("x86-64", "AMD EPYC", "x86_64", True),
        ("my-board", "anything", "riscv64", True),
    ],
)
def test_a_target_is_recognised_by_what_its_board_is_called(target, name, architecture, expected):
    assert is_target(target, name, architecture) is expected
