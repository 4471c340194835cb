"""What is said of a full memory."""

from types import SimpleNamespace

import torch

from nanocaption.train.faults import explain_fault


def test_out_of_memory_in_a_validation_names_what_is_captioned_at_once_as_well():
    settings = SimpleNamespace(BATCH_SIZE=20, EVAL_BATCH_SIZE=100)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    told = {
        training: explain_fault(SimpleNamespace(
            settings=settings, device=torch.device("cuda"), model=SimpleNamespace(training=training)), error)
        for training in (True, False)
    }  # fmt: skip
    assert "BATCH_SIZE = 20" in told[True] and "EVAL_BATCH_SIZE" not in told[True]
    assert "BATCH_SIZE = 20" in told[False] and "captions 100 pictures at once: lower EVAL_BATCH_SIZE" in told[False]
    assert explain_fault(SimpleNamespace(), ValueError("another")) is None
