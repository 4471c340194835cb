"""The contrastive loss over processes: two and three of gloo have the gradient of one, to 1e-6."""

import json
import os
from pathlib import Path

import torch

from nanocaption.base import devices
from nanocaption.train.losses import caption_objective
from nanocaption.train.step import accumulate_gradients, read_found
from tests.processes import end, start_ranks
from tests.unit.train.test_contrastive import IMAGES, batch_of, fake_run, with_head

# Of a step the pictures of each process, uneven, and once with none for one of them.
DEALT = {2: [[[0, 1, 4]], [[2], [3, 5]]], 3: [[], [[0, 2, 4, 5]], [[1, 3]]]}


def gradients(micro_batches: list[list[int]]) -> dict[str, object]:
    model = with_head()
    begun = accumulate_gradients(fake_run(model), caption_objective(), [batch_of(own) for own in micro_batches])
    found = {name: p.grad.flatten().tolist() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": read_found(begun)[::3], "gradients": found}


def worker(argv: list[str]) -> None:
    devices.start("cpu")
    dealt = DEALT[devices.world_size()][devices.rank()]
    rows, start = devices.gather_rows(torch.full((devices.rank(), 2), devices.rank()))
    found = gradients(dealt) | {"rows": rows[:, 0].tolist(), "start": start}
    devices.barrier()
    devices.stop()
    Path(argv[0], f"{os.environ['RANK']}.json").write_text(json.dumps(found))


def test_two_and_three_processes_have_the_gradient_of_one(tmp_path):
    whole = gradients([list(range(IMAGES))])
    for ranks in (2, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        processes = start_ranks([str(folder)], folder / "printed", ranks, main=worker)
        assert [end(process) for process in processes] == [0] * ranks, (folder / "printed").read_text()
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
        for rank, own in enumerate(found):
            torch.testing.assert_close(torch.tensor(own["loss"]), torch.tensor(whole["loss"]), rtol=1e-6, atol=1e-6)
            assert own["gradients"].keys() >= whole["gradients"].keys()
            for name, gradient in whole["gradients"].items():
                a, b = torch.tensor(own["gradients"][name]), torch.tensor(gradient)
                assert (a - b).abs().max() <= 1e-6 * max(1.0, b.abs().max()), (ranks, name)
            assert own["rows"] == [r for r in range(ranks) for _ in range(r)] and own["start"] == rank * (rank - 1) // 2
    # The control: without the others' captions as negatives the gradient is another.
    name = "retrieval.text.queries"
    alone = torch.tensor(gradients([[0, 1, 4]])["gradients"][name])
    assert (alone - torch.tensor(whole["gradients"][name])).abs().max() > 1e-3
