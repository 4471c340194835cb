"""PROFILE = True: where the time of a training step goes, and what share of the machine's arithmetic it uses."""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nanocaption.base import devices
from nanocaption.data.dataset import Batch
from nanocaption.data.loader import make_loader
from nanocaption.data.order import Group
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.runs import signals
from nanocaption.runs.log import write_row
from nanocaption.runs.resume import Start
from nanocaption.train.objective import begin_objective, ready
from nanocaption.train.setup import Progress, Run, prepare
from nanocaption.train.step import Mark, accumulate_gradients, read_found, take_update
from nanocaption.train.steps import steps_of_epoch

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

STEPS, WARMUP = 20, 4
PARTS = {  # in the order in which a step takes them -> what it says of one in the table
    "input": "reading and collating; a GPU's training overlaps it",
    "samples": "self-critical: captions drawn and rewarded",
    "copy to device": "",
    "encoder": "and the map of its features to the decoder's width",
    "decoder": "",
    "loss": "map to the vocabulary, cross-entropy; on a CPU their backward pass as well",
    "loss backward": "",
    "decoder backward": "",
    "encoder backward": "",
    "gradients": "sum over processes, norm, clipping",
    "optimizer": "",
    "log": "",
}


class Clock:
    """Seconds per part and step; `mark(part)` ends the part that ran since the last mark, when the device is done."""

    def __init__(self, device: torch.device):
        self.device, self.last = device, 0.0
        self.steps: list[dict[str, float]] = []

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


def main(start: Start, device: torch.device, requests: signals.Requests) -> None:
    """Make ready what would be trained, in a folder that nobody keeps, profile it, and leave no run behind."""
    with tempfile.TemporaryDirectory() as folder:
        run, _ = prepare(start._replace(state=None), Path(folder), device, requests)
        for group in run.optimizer.param_groups:
            group["lr"] = start.settings.LEARNING_RATE
        with run.log or contextlib.nullcontext():
            profile(run)


def profile(run: Run, steps: int = STEPS) -> None:
    """Train `steps` steps of the first epoch part by part, and print the table; the run's weights change.

    Every part waits for the device, so that the sum is somewhat above a step's time in training, which is measured
    apart, every other step. Medians.
    """
    plan = [*steps_of_epoch(run.settings, run.train_set, epoch=0)[: WARMUP + steps]]
    while len(plan) < WARMUP + 2:  # one step in parts and one whole, at least
        plan = plan + plan
    pictures = run.train_set.at_epoch(0)
    batches = [batch for groups in plan for batch in groups]
    loader = iter(make_loader(pictures, batches, run.settings.NUM_WORKERS, run.device.type == "cuda"))
    run.model.train()
    clock, whole, captions, flops = Clock(run.device), [], 0, 0
    for number, groups in enumerate(plan):
        reading = itertools.islice(loader, len(groups))
        if number < WARMUP:  # counting costs time, and the first steps are not typical
            with flop_counter() as counter:
                step(run, reading, groups, pictures.resident, number)
            flops = counter.get_total_flops()
        elif number % 2:
            with watched(run.model, clock):
                captions += step(run, reading, groups, pictures.resident, number, clock.mark)
        else:
            start = clock.now()
            captions += step(run, reading, groups, pictures.resident, number)
            whole.append(clock.now() - start)
    rate = matmul_rate(run.device, devices.pick_dtype(run.settings.PRECISION, run.device))
    text = table(clock.medians(), statistics.median(whole), captions / (len(plan) - WARMUP), flops, rate)
    devices.console(f"On {run.device}: {text}")


def step(
    run: Run, reading: Iterable[Batch], groups: Sequence[Sequence[Group]], resident: Tensor | None, number: int,
    mark: Mark = lambda part: None,
) -> int:  # fmt: skip
    """A step as training's first epoch does it, told to `mark` part by part; returns its captions."""
    batches, place = list(reading), Progress(step=number, step_in_epoch=number)
    mark("input")
    objective = begin_objective(run, place)
    batches, _ = ready(run, place, batches, groups, resident)
    mark("samples")
    found = read_found(accumulate_gradients(run, objective, batches, resident, mark))
    take_update(run.optimizer, run.scaler, skip=not found.finite(run.scaler.is_enabled()))
    mark("optimizer")
    write_row(run.log, {"type": "train", "step": number, "loss": found.loss})
    mark("log")
    return found.captions


@contextlib.contextmanager
def watched(model: ImageToTextModel, clock: Clock) -> Iterator[None]:
    """Inside, the clock runs for one more step, and the model marks where its own parts end, forwards and backwards."""

    def marking(plain: Callable[..., Tensor], part: str, backward: str) -> Callable[..., Tensor]:
        def passed(*arguments: object) -> Tensor:
            result = plain(*arguments)
            clock.mark(part)
            if result.requires_grad:  # the gradient of a part's result is there when the part after it is behind
                result.register_hook(lambda _: clock.mark(backward))
            return result

        return passed

    memory, hidden = model.memory, model.hidden
    model.memory = marking(memory, "encoder", "decoder backward")  # type: ignore[method-assign]
    model.hidden = marking(hidden, "decoder", "loss backward")  # type: ignore[method-assign]
    clock.start()
    try:
        yield
    finally:
        model.memory, model.hidden = memory, hidden  # type: ignore[method-assign]


def flop_counter() -> "FlopCounterMode":
    """A FlopCounterMode that counts the CPU's fused attention as well, for which torch has no formula."""
    from torch.utils import flop_counter as counting  # its import takes 0.7 s of every start

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        forward: lambda q, k, v, *_, **__: counting.sdpa_flop_count(q, k, v),
        backward: lambda gradient, q, k, v, *_, **__: counting.sdpa_backward_flop_count(gradient, q, k, v),
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


def table(seconds: dict[str, float], step_seconds: float, captions: float, flops: int, rate: float) -> str:
    """Lines to print: the seconds of each part, and of the whole step; its captions and operations; `matmul_rate`."""
    total = sum(seconds.values())
    parts = [
        f"  {part:<17}{1e3 * own:9.2f} ms {own / total:6.1%}   {PARTS[part]}".rstrip() for part, own in seconds.items()
    ]
    return "\n".join([
        f"a step of {captions:.0f} captions, part by part:",
        *parts,
        f"  {'sum':<17}{1e3 * total:9.2f} ms; undivided, as in training: {1e3 * step_seconds:.2f} ms, "
        f"{captions / step_seconds:,.0f} captions/s",
        f"  arithmetic: {flops / 1e9:.1f} GFLOP a step; a large matrix product does {rate / 1e12:.3g} TFLOP/s here, "
        f"so {1e3 * flops / rate:.2f} ms is the floor: MFU {flops / step_seconds / rate:.0%}",
    ])  # fmt: skip
