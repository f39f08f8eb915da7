"""Ray Data reads shards back exactly, with the lines of the page about datasets."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import webdataset
from helpers.ray_nodes import environment, own_ray

from labelmill.schemas.config import RunConfig
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

PAGE = (Path(__file__).resolve().parents[2] / "pipeline" / "dataset" / "README.md").read_text(encoding="utf-8")
(RECIPE,) = re.findall(r"^```python\n([^`]*?ray\.data[^`]*?)^```$", PAGE, flags=re.MULTILINE)
KEEP = "import pickle\nfrom pathlib import Path\nPath('rows.pickle').write_bytes(pickle.dumps(data.take_all()))\n"


def _decoded(data: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded


def test_ray_data_reads_what_was_written(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    shards = tmp_path / "out" / "demo" / "shards"
    lossless = {"image_format": "png"}
    generate(load_config(write_run_file(output=str(tmp_path / "out" / "demo"), dataset=lossless), RunConfig))
    with own_ray() as own, environment(**own, RAY_ADDRESS="local"):
        subprocess.run(
            [sys.executable, "-c", RECIPE.replace('"jpg"', '"png"') + KEEP], cwd=tmp_path, check=True, timeout=200
        )
    rows = pickle.loads((tmp_path / "rows.pickle").read_bytes())
    assert len(rows) == 24
    # Ray Data does not keep the order of shards.
    found = {row["__key__"]: row for row in rows}
    written = list(webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False))
    assert found.keys() == {sample["__key__"] for sample in written}
    for sample in written:
        row = found[sample["__key__"]]
        assert np.array_equal(row["png"], cv2.cvtColor(_decoded(sample["png"]), cv2.COLOR_BGR2RGB))
        assert np.array_equal(row["mask.png"], _decoded(sample["mask.png"]))
        assert row["json"] == json.loads(sample["json"])
