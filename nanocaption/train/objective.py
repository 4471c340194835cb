"""Which objective an epoch has, and how a step's batches are made ready for it."""

from collections.abc import Sequence

from torch import Tensor

from nanocaption.data.dataset import Batch
from nanocaption.data.order import Group
from nanocaption.train import contrastive, scst
from nanocaption.train.losses import Objective, caption_objective
from nanocaption.train.patches import drop_patches
from nanocaption.train.setup import Progress, Run, is_scst, trains_head


def begin_objective(run: Run, progress: Progress) -> Objective:
    """What the present epoch minimizes; the optimizer is made ready where that is another thing than before."""
    settings = run.settings
    if settings.OBJECTIVE == "contrastive":
        return contrastive.head_objective()
    if not is_scst(settings, progress.epoch):
        return caption_objective(settings.LABEL_SMOOTHING)
    scst.begin_phase(run, progress)
    return scst.scst_objective(settings.SCST_XE_WEIGHT, settings.LABEL_SMOOTHING)


def ready(
    run: Run, progress: Progress, batches: Sequence[Batch], groups: Sequence[Sequence[Group]], resident: Tensor | None
) -> tuple[list[Batch], scst.Drawn | None]:
    """A step's micro-batches as the objective takes them: fewer patches, drawn captions; and what was drawn.

    groups: of the images of each batch, in their order. resident: see Batch.to. All ranks together.
    """
    patches = run.model.patches()
    some = [drop_patches(batch, own, run.settings, progress.epoch, progress.step, patches)
            for batch, own in zip(batches, groups, strict=True)]  # fmt: skip
    if trains_head(run.settings):
        some = [contrastive.named(batch, own) for batch, own in zip(some, groups, strict=True)]
    if not is_scst(run.settings, progress.epoch):
        return some, None
    return scst.draw(run, some, groups, progress.epoch, resident)
