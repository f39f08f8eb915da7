"""The benchmark of a network as labeler, with one that has learned for seconds."""

from pathlib import Path

import pytest
import torch

from labelmill.pipeline.benchmark.network.results import markdown
from labelmill.pipeline.benchmark.network.run import ONNX_FILE, NetworkExtent, benchmark_network
from labelmill.pipeline.networks.trained import open_network
from labelmill.schemas.network import NetworkConfig


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_network_labels_generated_images_through_onnx(tmp_path: Path) -> None:
    extent, told = NetworkExtent(num_masks=16, steps=12, num_test=16), list[str]()
    cpu = torch.device("cpu")
    found = benchmark_network(tmp_path, "bundled:avatars-32", cpu, extent, told.append)
    assert len(told) == 3 and found.num_test == 16
    # Exact to rounding: the file that users would give is the one that was measured.
    network, _ = open_network(NetworkConfig(model=str(tmp_path / ONNX_FILE)), cpu)
    assert network.classes == ("background", "foreground")
    ours, theirs = found.of_style_mixing["0.7"].miou, found.of_network["0.7"].miou
    assert ours is not None and theirs is not None and ours > 0.93 and theirs < ours
    assert set(found.rank_correlation["1"]) == {"agreement with the network", "confidence", "their product"}
    page = (tmp_path / "network.md").read_text()
    assert page == markdown(found) and f"| style mixing | 0.7 | {100 * ours:.1f} |" in page
