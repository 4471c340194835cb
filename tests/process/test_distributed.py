"""Several processes add up to one: gradients, sums, the order of gathered rows; and on one process nothing happens."""

import importlib
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from nanocaption.base import devices


def make_model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        sometimes = torch.nn.Linear(4, 3)  # used by the first row alone
    return torch.nn.ModuleDict({"layers": layers, "sometimes": sometimes}).double()


ROWS = 7


def loss_of(model: torch.nn.Module, rows: list[int]) -> torch.Tensor:
    """The sum over some rows of a batch of ROWS."""
    inputs = torch.randn(ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[rows]
    loss = model["layers"](inputs).pow(2).sum()
    return loss + model["sometimes"](inputs[:1]).pow(2).sum() if 0 in rows else loss


def worker(rank: int, ranks: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    devices.start("cpu")
    model = make_model()
    mine = list(range(rank, ROWS, ranks))
    loss_of(model, mine).backward()
    before = model["sometimes"].weight.grad is not None
    devices.sum_gradients(list(model.parameters()))
    # each process makes its file a moment after the one before; the first must have been first all the same
    order = devices.first_rank_first(lambda: _append(folder, rank))
    result = {
        "rank": devices.rank(), "ranks": devices.world_size(), "local": devices.local_rank(),
        "gradients": [p.grad.tolist() for p in model.parameters()], "had_gradient": before,
        "sum": devices.sum_(torch.tensor([float(rank), 1.0])).tolist(),
        "gathered": devices.gather([{"rank": rank, "row": row} for row in mine]),
        "order": order,
    }  # fmt: skip
    devices.barrier()
    devices.stop()
    result["after"] = [devices.rank(), devices.world_size()]
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(result, file)


def _append(folder: str, rank: int) -> int:
    with open(f"{folder}/order", "a") as file:
        file.write(f"{rank} {'silent' if sys.stdout is None else 'heard'}\n")
    return rank


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    # Forked: a fresh process would import torch first.
    multiprocessing.start_processes(
        worker, (request.param, free_port(), str(folder)), nprocs=request.param, start_method="fork"
    )
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]
    found[0]["file"] = (folder / "order").read_text().splitlines()
    return found


def test_summed_gradients_are_those_of_the_whole_batch_on_one_process(results):
    model = make_model()
    loss_of(model, list(range(ROWS))).backward()
    expected = [p.grad for p in model.parameters()]
    for result in results:
        for gradient, own in zip(expected, result["gradients"], strict=True):
            torch.testing.assert_close(torch.tensor(own, dtype=torch.float64), gradient, rtol=1e-12, atol=1e-12)
    assert results[0]["gradients"] == results[1]["gradients"]  # to the bit, or the copies drift apart
    partial = make_model()
    loss_of(partial, [0, 2, 4, 6]).backward()
    assert not torch.allclose(next(partial.parameters()).grad, expected[0])


def test_a_parameter_unused_on_one_process_gets_the_others_gradient(results):
    assert [result["had_gradient"] for result in results] == [True] + [False] * (len(results) - 1)


def test_rows_are_gathered_rank_after_rank_on_every_process(results):
    ranks = len(results)
    expected = [{"rank": rank, "row": row} for rank in range(ranks) for row in range(rank, ROWS, ranks)]
    assert all(result["gathered"] == expected for result in results)


def test_sums_ranks_and_turns(results):
    ranks = len(results)
    for rank, result in enumerate(results):
        assert (result["rank"], result["ranks"], result["local"]) == (rank, ranks, rank)
        assert result["sum"] == [sum(range(ranks)), ranks]
        assert result["order"] == rank and result["after"] == [0, 1]
    assert results[0]["file"][0] == "0 heard"
    assert sorted(results[0]["file"][1:]) == [f"{rank} silent" for rank in range(1, ranks)]


KEEPS_THE_GROUP = "torch.distributed.nn.functional"  # as a default argument, where it is imported after the start


def leave(rank: int, ports: list[int], folder: str) -> None:
    """Joins and leaves two groups; the second time somebody keeps the group. Which of gloo's threads are left then?"""
    sys.modules.pop(KEEPS_THE_GROUP, None)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    left = []
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        devices.start("cpu")
        importlib.import_module(KEEPS_THE_GROUP)
        devices.max_(rank)
        kept = torch.distributed.group.WORLD if left else None
        devices.stop()
        names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        left.append([name for name in names if "gloo" in name])
    del kept
    Path(folder, f"{rank}.json").write_text(json.dumps(left))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs the names of threads")
def test_no_thread_of_gloo_is_left_that_could_abort_the_end(tmp_path):
    multiprocessing.start_processes(leave, ([free_port(), free_port()], str(tmp_path)), nprocs=2, start_method="fork")
    for rank in range(2):
        left, where_somebody_keeps_the_group = json.loads((tmp_path / f"{rank}.json").read_text())
        assert left == []
        assert where_somebody_keeps_the_group  # the control


def test_on_one_process_everything_is_a_no_op(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    devices.start("cpu")
    assert not torch.distributed.is_initialized()
    assert (devices.rank(), devices.world_size(), devices.local_rank()) == (0, 1, 0)
    devices.barrier()
    tensor = torch.tensor([1.0, 2.0])
    assert devices.sum_(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
    rows = [{"a": 1}]
    assert devices.gather(rows) == rows
    parameter = torch.nn.Parameter(torch.ones(2))
    devices.sum_gradients([parameter])
    assert parameter.grad is None
    calls = []
    assert devices.first_rank_first(lambda: calls.append(1) or "made") == "made" and calls == [1]
    devices.stop()
