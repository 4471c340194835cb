"""Weights, gradients and optimizer state spread over the processes (FSDP2), for models that one card cannot hold.

Every process keeps a part of each parameter, its rows dealt out. A block's whole weights are gathered for the moment
that it computes, and its gradients summed straight into the parts: torch's fully_shard, after ZeRO (Rajbhandari et al.
2020). Whole are, for the while, one block's weights and those outside of blocks; and in `gathered` all of them. What a
checkpoint holds is always whole. Torch's own parts are imported where they are needed: they take seconds of a start.
"""

import contextlib
from collections.abc import Iterator, Sequence

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
    blocks = _blocks(model)
    for module in [*blocks, model]:
        fully_shard(module, mesh=mesh)
        # Losses are already divided by the tokens of all processes: sums, not means. Gloo, too, can sum.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")
    # While one block goes backwards, the one before is gathered. By default FSDP does so in the order of all forward
    # passes since the last backward pass. In a validation the processes differ in these, and would wait for each other.
    trained = [block for block in blocks if any(parameter.requires_grad for parameter in block.parameters())]
    for module, earlier in zip([*trained, model], [model, *trained], strict=True):
        module.set_modules_to_backward_prefetch([earlier])
    model.encode_in_parts = False  # the processes may have different numbers of images, and must gather equally often


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
    blocks = _blocks(model)
    for module in [*blocks, model]:
        module.unshard()
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
        for module in [*blocks, model]:
            module.reshard()


def passes(model: nn.Module, own: int) -> int:
    """How many forward and backward passes this step takes on every process; `own`: how many batches this one has."""
    return devices.max_(own)[0] if is_spread(model) else own


def own_part(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimizer updates: this process's part of a parameter, in the same memory; `layout` leads back.

    Plain tensors, not torch's DTensors: these plan an operation anew whenever one of its numbers changes, as the
    learning rate does in every step, which takes longer than a step.
    """
    if not hasattr(parameter, "to_local"):
        return parameter
    part = nn.Parameter(parameter.detach().to_local())
    part.spread_parameter = parameter
    return part


def layout(part: nn.Parameter) -> nn.Parameter:
    """The parameter that `own_part` gave this of, with the shape of the whole."""
    return getattr(part, "spread_parameter", part)


def take_gradients(parts: Sequence[nn.Parameter], scaled: bool) -> None:
    """Hand what the backward passes left in the model, already summed over processes, to the optimizer's parts."""
    for part in parts:
        gradient, layout(part).grad = layout(part).grad, None
        part.grad = None if gradient is None else gradient.to_local()
    if scaled:  # a GradScaler sees its own parts only: an overflow of one process becomes everyone's
        gradients = [part.grad for part in parts if part.grad is not None]
        torch._foreach_add_(gradients, 0 * devices.sum_(nn.utils.get_total_norm(gradients)))


def clip_gradients(parts: Sequence[nn.Parameter], limit: float) -> Tensor:
    """clip_grad_norm_ of the optimizer's parts: the norm () of the whole gradient, with one sum over processes."""
    gradients = [part.grad for part in parts if part.grad is not None]
    norm = devices.sum_(nn.utils.get_total_norm(gradients) ** 2).sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def whole(tensor: Tensor, part: nn.Parameter | None = None) -> Tensor:
    """All of a tensor that is spread, or that belongs to the optimizer's `part`; any other as it is.

    All processes together: each gets the whole.
    """
    if part is not None and layout(part) is not part:
        from torch.distributed.tensor import DTensor

        of = layout(part)
        tensor = DTensor.from_local(tensor, of.device_mesh, of.placements, shape=of.shape, stride=of.stride())
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part_like(tensor: Tensor, part: nn.Parameter) -> Tensor:
    """What of a whole `tensor`, which every process has, belongs to the optimizer's `part`."""
    of = layout(part)
    if not hasattr(of, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Without a source nothing is sent. A copy, or the whole would stay in memory.
    spread = distribute_tensor(tensor.to(of.device), of.device_mesh, of.placements, src_data_rank=None)
    return spread.clone().to_local()


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]
