"""Weights, gradients and optimizer state spread over the processes (FSDP2), for models that one card cannot hold.

Every process keeps a part of each parameter, its rows dealt out. A block's whole weights are gathered for the moment
that it computes, and its gradients summed straight into the parts: torch's fully_shard, after ZeRO (Rajbhandari et al.
2020). Whole are, for the while, one block's weights and those outside of blocks; and in `gathered` all of them. What a
checkpoint holds is always whole. Torch's own parts are imported where they are needed: they take seconds of a start.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanocaption.base import devices


def spread(model: nn.Module, device: torch.device) -> None:
    """Spread the parameters of `model`, frozen ones as well, over all processes; its buffers stay whole.

    Before the optimizer is built: the parameters are new ones. Each element of a ModuleList (a block of the encoder or
    of the decoder) is gathered by itself; the rest belongs to the model, whose `hidden` gathers it until the backward
    pass has ended, so that the output map, after `hidden`, finds its weights whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (devices.world_size(),))
    parts = _parts(model)
    for module in parts:
        fully_shard(module, mesh=mesh)
        # Losses are already divided by the tokens of all processes: sums, not means. Gloo, too, can sum.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")
    # While one block goes backwards, the one before is gathered. By default FSDP does so in the order of all forward
    # passes since the last backward pass. In a validation the processes differ in these, and would wait for each other.
    trained = [block for block in parts[:-1] if any(parameter.requires_grad for parameter in block.parameters())]
    for module, earlier in zip([*trained, parts[-1]], [parts[-1], *trained], strict=True):
        module.set_modules_to_backward_prefetch([earlier])
    # The processes may have different numbers of images, and must gather equally often.
    parts[-1].encode_in_parts = False


def is_spread(model: nn.Module) -> bool:
    return hasattr(model, "set_modules_to_backward_prefetch")


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process has the whole weights, and each may run the model as often as it likes. All enter together.

    For passes without gradients: the memory of the whole weights, not of gradients and optimizer.
    """
    if not is_spread(model):
        yield
        return
    parts = _parts(model)
    for module in parts:
        module.unshard()
    for block in parts[:-1]:
        block.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for block in parts[:-1]:
            block.set_reshard_after_forward(True, recurse=False)
        for module in parts:
            module.reshard()


def passes(model: nn.Module, own: int) -> int:
    """How many forward and backward passes this step takes on every process; `own`: how many batches this one has."""
    return devices.max_(own)[0] if is_spread(model) else own


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """clip_grad_norm_ of spread parameters, with one sum over processes: the norm () of the whole gradient."""
    gradients: list[Any] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    own = [gradient.to_local() for gradient in gradients]  # in the same memory
    norm = devices.sum_(nn.utils.get_total_norm(own) ** 2).sqrt()
    torch._foreach_mul_(own, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread, any other as it is. All processes together: each gets the whole."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is spread, in the same memory; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def spread_like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A whole `tensor`, which every process has, spread as `parameter` is."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    of: Any = parameter
    # Without a source nothing is sent. A copy, or the whole would stay in memory.
    return distribute_tensor(tensor.to(of.device), of.device_mesh, of.placements, src_data_rank=None).clone()


def _parts(model: nn.Module) -> list[Any]:
    """What is gathered by itself, modules of FSDP once they are spread: the blocks, and last the model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [*(block for blocks in lists for block in blocks), model]
