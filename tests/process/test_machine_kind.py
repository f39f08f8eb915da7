"""The kind of machine and libraries that a shard was made by."""

from importlib.metadata import version

import pytest
import torch

from labelmill.pipeline.process.machine_kind import machine_kind


def test_a_kind_names_processor_and_libraries() -> None:
    kind = machine_kind(torch.device("cpu"))
    assert kind.device == "cpu"
    assert kind.processor.endswith(torch.backends.cpu.get_cpu_capability()) and len(kind.processor.split()) >= 2
    assert kind.libraries["torch"] == version("torch") and kind.libraries["numpy"] == version("numpy")
    assert "cuda" not in kind.libraries
    assert str(kind).startswith(f"cpu on {kind.processor}, torch {version('torch')}")


def test_settings_that_change_bits_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    plain = machine_kind(torch.device("cpu"))
    assert plain.settings == {}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    changed = machine_kind(torch.device("cpu"))
    assert changed.settings == {"MKL_CBWR": "COMPATIBLE"} and changed != plain
    assert str(changed).endswith(", MKL_CBWR=COMPATIBLE")
