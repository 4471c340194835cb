"""The exponential moving average of the weights that train (EMA_DECAY): kept beside them, and validated in their place.

After every step that was taken, average = d average + (1 - d) weights, with d = min(EMA_DECAY, (1 + t) / (10 + t)) and
t the steps that it has taken in: the warm-up lets the first weights, which are worth nothing, go at once. In the
self-critical phase d is EMA_DECAY: there the average begins with trained weights, and a part of them is to stay. A
frozen encoder has no part in it. All of it is elementwise, so that with FSDP each process averages its own parts.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nanocaption.base.tensors import State, check_fits
from nanocaption.base.tower_names import as_in_memory
from nanocaption.train import sharding

Average = Mapping[str, Tensor]  # by parameter name, spread as the parameters are; empty where EMA_DECAY is 0


def begin(parameters: Mapping[str, nn.Parameter], saved: State | None) -> Average:
    """The average of `parameters` (those that train) to go on with: as `saved` holds it, or else their present values.

    saved: the checkpoint to resume. Raises ValueError, naming it, where its average lacks or adds a parameter.
    """
    if saved is None or "raw_state_dict" not in saved:
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}
    names = saved["raw_state_dict"]
    found = as_in_memory({name: saved["model_state_dict"][name] for name in names}, parameters)
    check_fits(parameters, found, "The checkpoint's average")
    return {name: sharding.spread_like(found[name].to(p.device), p).clone() for name, p in parameters.items()}


def decay_at(decay: float, taken: int, rewarded: bool) -> float:
    """That of the next update, after `taken` others; rewarded: of a step of the self-critical phase."""
    return decay if rewarded else min(decay, (1 + taken) / (10 + taken))


@torch.no_grad()
def update(average: Average, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
    """Take the parameters of a step that was taken into the average, in place. decay: see decay_at."""
    own = [sharding.local(tensor) for tensor in average.values()]
    weights = [sharding.local(parameters[name].detach()) for name in average]
    torch._foreach_lerp_(own, weights, 1 - decay)


@contextlib.contextmanager
def in_place(average: Average, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, the model has the average for its weights; afterwards its own again, to the bit, whatever happened.

    They change places tensor by tensor, through memory for the largest one that is there before the first moves: where
    there is none left, nothing has been touched.
    """
    pairs = [(sharding.local(tensor), sharding.local(parameters[name].detach())) for name, tensor in average.items()]
    if not pairs:
        yield
        return
    spare = torch.empty(max(own.nbytes for own, _ in pairs), dtype=torch.uint8, device=pairs[0][0].device)
    _exchange(pairs, spare)
    try:
        yield
    finally:
        _exchange(pairs, spare)


@torch.no_grad()
def _exchange(pairs: Sequence[tuple[Tensor, Tensor]], spare: Tensor) -> None:
    for own, weights in pairs:
        kept = spare[: own.nbytes].view(own.dtype).view(own.shape)
        kept.copy_(weights)
        weights.copy_(own)
        own.copy_(kept)
