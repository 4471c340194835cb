"""The optimizer's parameter groups, its state by parameter name, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from nanocaption.base.tensors import OptimizerState, check_fits, slots_by_name
from nanocaption.base.tower_names import as_in_memory, file_names, is_of_tower, place_of
from nanocaption.train import sharding

# Learned tables and tokens that pretrained towers keep as bare parameters.
_NO_DECAY = ("position", "cls_token", "class_embedding", "mask_token", "register_tokens", "distillation_token")


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizers as it was before a wrapper that imports torch's compiler."""
    return getattr(method, "__wrapped__", method)


class AdamW(torch.optim.AdamW):
    """torch's own, less the imports of torch's compiler in its methods: a second and 200 MB of every start.

    The compiler is told there not to look at them, and nothing here compiles an optimizer.
    """

    add_param_group = _plain(torch.optim.Optimizer.add_param_group)
    zero_grad = _plain(torch.optim.Optimizer.zero_grad)
    state_dict = _plain(torch.optim.Optimizer.state_dict)
    load_state_dict = _plain(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        _plain(torch.optim.AdamW.step)(self)


def build_optimizer(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], eps: float, fused: bool
) -> torch.optim.AdamW:
    """AdamW over the parameters of `model` that train.

    Up to four groups: encoder or not, decayed or not. Weight matrices and convolution kernels decay; biases, norms and
    embeddings (token, position) do not. Each group has the keys "part" ("encoder" or "decoder") for its learning rate.
    Raises ValueError where nothing trains.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "encoder" if name.startswith("encoder.") else "decoder"
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings and not any(w in name for w in _NO_DECAY)
        groups.setdefault((part, decays), []).append((name, parameter))
    if not groups:
        raise ValueError("No parameter of the model trains.")
    return AdamW(
        [
            {"params": members, "part": part, "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), members in sorted(groups.items())
        ],
        lr=0.0,  # set before every step
        betas=betas,
        eps=eps,
        fused=fused,
    )


class Schedule(NamedTuple):
    """The learning rate of every step, a pure function of its number: a resume has nothing to restore.

    Linear from `warmup_lr` at step 0 to `peak` at step `warmup_steps`; then "constant", "linear" or
    "cosine" down to `min_lr` at `total_steps`, or "step": times `decay_rate` after every epoch, not below `min_lr`.
    """

    peak: float
    schedule: str
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    warmup_lr: float
    min_lr: float
    decay_rate: float

    def rate(self, step: int) -> float:
        """That of optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.warmup_lr + (self.peak - self.warmup_lr) * step / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        if self.schedule == "step":
            return max(self.min_lr, self.peak * self.decay_rate ** (step // self.steps_per_epoch))
        share = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))  # of the way down
        if self.schedule == "linear":
            return self.peak + (self.min_lr - self.peak) * share
        if self.schedule == "cosine":
            return self.min_lr + (self.peak - self.min_lr) * (1 + math.cos(math.pi * share)) / 2
        raise ValueError(f"LR_SCHEDULE = {self.schedule!r}: must be constant, linear, cosine or step.")


def set_learning_rates(optimizer: torch.optim.Optimizer, rate: float, encoder_share: float) -> dict[str, float]:
    """Set them for the next step, the encoder's as a share of `rate`; returns them as the log names them."""
    for group in optimizer.param_groups:
        group["lr"] = rate * (encoder_share if group["part"] == "encoder" else 1.0)
    return {"lr": rate} if encoder_share == 1 else {"lr": rate, "encoder_lr": rate * encoder_share}


def parameters_by_name(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """In the order in which torch numbers them."""
    return {n: p for g in optimizer.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}


def state_by_name(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The optimizer's state, its tensors as the optimizer has them.

    Torch's own state is by position, where two swapped parameters of one shape would go unnoticed. With names it has
    torch.distributed.checkpoint, whose import takes a second of every start and which checks neither shapes nor slots.
    """
    state = {n: dict(optimizer.state[p]) for n, p in parameters_by_name(optimizer).items() if p in optimizer.state}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    for group in groups:  # parameters that got no gradient yet have no state; told, so that none is lost unnoticed
        group["without_state"] = [name for name in group["param_names"] if name not in state]
    return {"state": state, "param_groups": groups}


def positional_state(optimizer: torch.optim.Optimizer, saved: OptimizerState) -> dict[str, object]:
    """What `state_by_name` gave, whole, for optimizer.load_state_dict; spread as the optimizer's parameters are.

    Raises ValueError, naming it, where a parameter, slot, shape or dtype is not what this optimizer has.
    """
    groups = optimizer.state_dict()["param_groups"]
    held, wanted = ([file_names(g["param_names"]) for g in its] for its in (saved["param_groups"], groups))
    # A version of transformers may have them in another order, or as halves of one; others stay as they were.
    towers = any(is_of_tower(name) for names in wanted for name in names)
    if [sorted(names) for names in held] != [sorted(names) for names in wanted] or (held != wanted and not towers):
        raise ValueError("The checkpoint's optimizer holds other parameters than this model trains.")
    parameters = parameters_by_name(optimizer)
    without = {name for group in saved["param_groups"] for name in file_names(group["without_state"])}
    expected = {name: parameter for name, parameter in parameters.items() if place_of(name).name not in without}
    slots = {name: {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like} for name, like in expected.items()}
    own = _in_memory(saved, expected)
    check_fits(slots_by_name({"state": slots, "param_groups": []}), slots_by_name(own), "The checkpoint's optimizer")
    state = {
        number: {
            slot: tensor if slot == "step" else sharding.spread_like(tensor, parameter)
            for slot, tensor in own["state"][name].items()
        }
        for number, (name, parameter) in enumerate(parameters.items())
        if name in expected
    }
    present = ("params", "param_names")
    pairs = zip(saved["param_groups"], groups, strict=True)
    return {"state": state, "param_groups": [group | {key: now[key] for key in present} for group, now in pairs]}


def _in_memory(saved: OptimizerState, names: Collection[str]) -> OptimizerState:
    """With the names of the parameters at hand, see tower_names.py."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for slot in sorted({slot for its in saved["state"].values() for slot in its}):
        held = {name: its[slot] for name, its in saved["state"].items() if slot in its}
        for name, tensor in as_in_memory(held, names).items():
            whole = place_of(name).half is None  # halves of one would be one memory
            state.setdefault(name, {})[slot] = tensor if whole else tensor.clone()
    return {"state": state, "param_groups": []}
