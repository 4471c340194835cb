"""What holds on a CUDA device, check by check: pytest -m gpu tests/gpu. `make gpu` runs the same without pytest."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_checks


@pytest.fixture(scope="session")
def checks_data(once) -> Path:
    return once("checks", gpu_checks.make_data)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # of drivers and cards that nobody here has seen
@pytest.mark.parametrize("name", gpu_checks.CHECKS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_holds_on_the_device(name, checks_data, tmp_path):
    assert gpu_checks.CHECKS[name](gpu_checks.Site(tmp_path, checks_data, torch.device("cuda:0")))
