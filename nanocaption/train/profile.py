"""PROFILE = True: where the time of a training step goes, and what share of the machine's arithmetic it uses."""

import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanocaption.base import devices
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import Batch
from nanocaption.data.loader import make_loader
from nanocaption.runs import signals
from nanocaption.runs.log import write_row
from nanocaption.train.losses import hidden_loss
from nanocaption.train.setup import Run, prepare, steps_of_epoch
from nanocaption.train.step import accumulate_gradients, read_found, take_update

STEPS, WARMUP = 20, 4
PARTS = (
    "input", "copy to device", "encoder", "decoder", "loss", "loss backward", "decoder backward", "encoder backward",
    "gradients", "optimizer", "log",
)  # fmt: skip
MEANING = {
    "input": "reading and collating; a GPU's training overlaps it",
    "encoder": "and the map of its features to the decoder's width",
    "loss": "map to the vocabulary, cross-entropy; on a CPU their backward pass as well",
    "gradients": "sum over processes, norm, clipping",
}


class Clock:
    """Seconds per part and step; `mark(part)` ends the part that ran since the last mark, when the device is done."""

    def __init__(self, device: torch.device):
        self.device, self.steps, self.last = device, [], 0.0

    def start(self) -> None:
        self.steps.append(defaultdict(float))
        self.last = self.now()

    def mark(self, part: str) -> None:
        now = self.now()
        self.steps[-1][part] += now - self.last
        self.last = now

    def medians(self) -> dict[str, float]:
        return {part: statistics.median(step[part] for step in self.steps) for part in PARTS}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def main(settings: Settings, device: torch.device, requests: signals.Requests, initial: dict[str, Any] | None) -> None:
    """Make ready what would be trained, in a folder that nobody keeps, profile it, and leave no run behind."""
    with tempfile.TemporaryDirectory() as folder:
        run, _ = prepare(settings, Path(folder), device, requests, None, initial)
        for group in run.optimizer.param_groups:
            group["lr"] = settings.LEARNING_RATE
        with run.log or contextlib.nullcontext():
            profile(run)


def profile(run: Run, steps: int = STEPS) -> dict[str, Any]:
    """Train `steps` steps of the first epoch part by part, and print the table; the run's weights change.

    Every part waits for the device, so that the sum is somewhat above a step's time in training, which is measured
    apart, every other step. Medians. Returns {"seconds": by part, "step": seconds, "captions": per step, "flops": per
    step, "rate": of a large matrix product, 1/s, "mfu"}.
    """
    plan = steps_of_epoch(run.settings, run.train_set, epoch=0)[: WARMUP + steps]
    while len(plan) < WARMUP + 2:  # one step in parts and one whole, at least
        plan = plan + plan
    pictures = run.train_set.at_epoch(0)
    batches = [batch for groups in plan for batch in groups]
    loader = iter(make_loader(pictures, batches, run.settings.NUM_WORKERS, run.device.type == "cuda"))
    run.model.train()
    clock, whole, captions, flops = Clock(run.device), [], 0, 0
    for number, groups in enumerate(plan):
        if number < WARMUP:  # counting costs time, and the first steps are not typical
            with flop_counter() as counter:
                _step(run, loader, len(groups), pictures.resident, number, Clock(run.device))
            flops = counter.get_total_flops()
        elif number % 2:
            captions += _step(run, loader, len(groups), pictures.resident, number, clock)
        else:
            start = clock.now()
            captions += _plain_step(run, loader, len(groups), pictures.resident, number)
            whole.append(clock.now() - start)
    rate = matmul_rate(run.device, devices.pick_dtype(run.settings.PRECISION, run.device))
    step = statistics.median(whole)
    found = {
        "seconds": clock.medians(), "step": step, "captions": captions / (len(plan) - WARMUP), "flops": flops,
        "rate": rate, "mfu": flops / step / rate,
    }  # fmt: skip
    if devices.rank() == 0:
        print(table(found, run.device))
    return found


def _plain_step(run: Run, loader: Iterator, number: int, resident: Tensor | None, step: int) -> int:
    """A step as training does it; returns its captions."""
    begun = accumulate_gradients(
        run.model, run.optimizer, run.scaler, [next(loader) for _ in range(number)], run.settings, run.device, resident
    )
    found = read_found(begun)
    take_update(run.optimizer, run.scaler, skip=not found.finite(run.scaler.is_enabled()))
    write_row(run.log, {"type": "train", "step": step, "loss": found.loss})
    return found.captions


def _step(
    run: Run, loader: Iterator, number: int, resident: Tensor | None, step: int, clock: Clock
) -> int:
    """The same in parts, each with its time; one after the other of micro-batches. Returns its captions."""
    clock.start()
    run.optimizer.zero_grad(set_to_none=True)
    captions, loss = 0, torch.zeros(())
    for _ in range(number):
        batch = next(loader)
        captions += len(batch.image_index)
        clock.mark("input")
        batch = batch.to(run.device, resident)
        clock.mark("copy to device")
        loss = _passes(run, batch, clock)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    devices.sum_gradients(parameters)
    run.scaler.unscale_(run.optimizer)
    nn.utils.clip_grad_norm_(parameters, run.settings.GRAD_CLIP_VALUE or float("inf"))
    clock.mark("gradients")
    take_update(run.optimizer, run.scaler, skip=False)
    clock.mark("optimizer")
    write_row(run.log, {"type": "train", "step": step, "loss": loss.item()})
    clock.mark("log")
    return captions * devices.world_size()


def _passes(run: Run, batch: Batch, clock: Clock) -> Tensor:
    """Forward and backward pass of a batch, as step.caption_loss; the loss per token."""
    model, settings = run.model, run.settings
    with devices.autocast(run.device, devices.pick_dtype(settings.PRECISION, run.device)):
        memory = model.memory(batch.images)
        clock.mark("encoder")
        hidden = model.decoder(batch.decoder_input_tokens, memory, batch.places)
        clock.mark("decoder")
        loss = hidden_loss(model, hidden, batch, settings.LABEL_SMOOTHING) / len(hidden)
        clock.mark("loss")
    # The gradient of `hidden` is there when the loss is behind, that of `memory` when the decoder is.
    hidden.register_hook(lambda _: clock.mark("loss backward"))
    memory.register_hook(lambda _: clock.mark("decoder backward"))
    run.scaler.scale(loss).backward()
    clock.mark("encoder backward")
    return loss.detach()


def flop_counter() -> Any:
    """A FlopCounterMode that counts the CPU's fused attention as well, for which torch has no formula."""
    from torch.utils import flop_counter as counting  # its import takes 0.7 s of every start

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return counting.sdpa_flop_count(q, k, v)

    def backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return counting.sdpa_backward_flop_count(gradient, q, k, v)

    aten = torch.ops.aten
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return counting.FlopCounterMode(display=False, custom_mapping=formulas)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine, now: the yardstick of the MFU."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock, times = Clock(device), []
    for _ in range(12):
        start = clock.now()
        a @ b
        times.append(clock.now() - start)
    return 2 * size**3 / statistics.median(times[2:])


def table(found: dict[str, Any], device: torch.device) -> str:
    """What `profile` found, as lines to print."""
    total = sum(found["seconds"].values())
    lines = [f"A step of {found['captions']:.0f} captions on {device}, part by part:"]
    lines += [
        f"  {part:<17}{1e3 * seconds:9.2f} ms {seconds / total:6.1%}   {MEANING.get(part, '')}".rstrip()
        for part, seconds in found["seconds"].items()
    ]
    floor = found["flops"] / found["rate"]
    return "\n".join([
        *lines,
        f"  {'sum':<17}{1e3 * total:9.2f} ms; undivided, as in training: {1e3 * found['step']:.2f} ms, "
        f"{found['captions'] / found['step']:,.0f} captions/s",
        f"  arithmetic: {found['flops'] / 1e9:.1f} GFLOP a step; a large matrix product does "
        f"{found['rate'] / 1e12:.3g} TFLOP/s here, so {1e3 * floor:.2f} ms is the floor: MFU {found['mfu']:.0%}",
    ])  # fmt: skip
