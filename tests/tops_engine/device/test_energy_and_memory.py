"""Test the counters of energy and the peak of memory, where this machine or a folder like the system's has them."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tops_engine.device.energy import joules_used
from tops_engine.device.memory import PeakMemory

CPU = torch.device("cpu")


def test_the_energy_of_all_processors_is_added_without_their_parts(tmp_path: Path) -> None:
    for name, microjoules in {"intel-rapl:0": 2_500_000, "intel-rapl:1": 500_000, "intel-rapl:0:0": 9}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
    assert joules_used(CPU, tmp_path) == 3.0


def test_without_counters_the_energy_is_unknown(tmp_path: Path) -> None:
    assert joules_used(CPU, tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # as unreadable as a file of root
    assert joules_used(CPU, tmp_path) is None


def test_the_driver_of_a_gpu_is_asked_by_its_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ModuleType("pynvml")
    driver.__dict__.update(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-12ab": 4500}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    assert joules_used(torch.device("cuda:0")) == 4.5


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is known on Linux only")
def test_the_peak_starts_anew() -> None:
    before = PeakMemory(CPU)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    with_block = before.num_bytes
    del block
    after = PeakMemory(CPU).num_bytes
    assert with_block is not None
    assert after is not None
    assert with_block - after > 48 * 2**20
