"""The example on Ray Data of docs/masses.md, on a local cluster of two workers and one that reads."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from pyarrow import parquet

import nanocaption
from tests.conftest import ROOT

pytestmark = pytest.mark.long  # it starts a cluster


def test_the_example_gives_the_captions_of_one_process(demo_data, tiny_run_made, tmp_path):
    pytest.importorskip("ray")
    page = (ROOT / "docs" / "masses.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "map_batches" in example
    (tmp_path / "photos").mkdir()
    pictures = sorted((demo_data / "demo" / "images").iterdir())[:6]
    for picture in pictures:
        shutil.copy(picture, tmp_path / "photos")
    (tmp_path / "photos" / "x.jpg").write_text("no picture")
    shutil.copy(tiny_run_made / "last.safetensors", tmp_path / "my_captioner")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
                                "RAY_worker_niceness": "0"}  # fmt: skip
    source = example
    for quoted, place in (('("my_captioner",)', "my_captioner"), ('"photos/"', "photos"), ('"out/"', "out")):
        whole = repr(str(tmp_path / place))  # workers have other folders of their own
        source = source.replace(quoted, f"({whole},)" if quoted.startswith("(") else whole)
    assert source.count(str(tmp_path)) == 3
    (tmp_path / "example.py").write_text(f"import ray\n\nray.init(num_cpus=3)\n{source}")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["path"].rpartition("/")[2]: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    model = nanocaption.load(tmp_path / "my_captioner")
    assert found.pop("x.jpg")["caption"] == ""
    captions = {name: row["caption"] for name, row in found.items()}
    assert captions == {path.name: model.caption(path) for path in pictures}
    assert all(row["log_prob"] < 0 for row in found.values())
