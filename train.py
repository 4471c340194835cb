"""Train a captioner.

    python train.py                                       the built-in demo set: minutes on a laptop's CPU
    python train.py recipes/flickr8k_vit_tiny.py          a recipe: a Python file of settings
    python train.py --resume-checkpoint-path last         continue the newest run to the same bits
    torchrun --nproc-per-node 2 train.py                  several processes

Every setting stands in config.py and is a flag, too: python train.py --help
Reading order: main() prepares, fit() loops over epochs, train_one_epoch() over steps, optimizer_step() is one step.
"""

import sys

import config

if __name__ == "__main__":
    config.load(sys.argv[1:])  # --help and mistakes answer before torch is imported

import contextlib  # noqa: E402
import functools  # noqa: E402
import hashlib  # noqa: E402
import math  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import checkpoint  # noqa: E402
import dataset as data  # noqa: E402
import distributed  # noqa: E402
import encoder  # noqa: E402
import evaluate as evaluation  # noqa: E402
import inference  # noqa: E402
import model as models  # noqa: E402
import optim  # noqa: E402
import prepare_dataset  # noqa: E402
import report  # noqa: E402
import runlog  # noqa: E402
import runs  # noqa: E402
import tokenizer as tokenizers  # noqa: E402
import training_sets  # noqa: E402

PAD = tokenizers.PAD


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    settings: Any
    folder: Path
    device: torch.device
    model: models.ImageToTextModel
    tokenizer: Any
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    train_set: data.ImageTextDataset
    val_set: data.ImageTextDataset
    val_images: data.ImageTextDataset  # the first VALIDATION_SCORE_IMAGES of val_set, with their val_records
    val_records: list[dict[str, Any]]
    learning_rate: Callable[[int], float]  # of an optimizer step
    captions_sha256: str
    log: Any
    wandb_run: Any


class Progress(NamedTuple):
    """What changes, and is saved with the weights."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished optimizer steps
    best_val_loss: float | None = None
    validations_without_gain: int = 0


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    settings = config.load(argv)
    saved, initial = None, None
    if settings.RESUME_CHECKPOINT_PATH is not None:
        path = runs.resume_path(settings)
        saved, settings = runs.load_for_resume(path, argv)
    elif settings.INIT_CHECKPOINT_PATH is not None:
        initial = runs.load_initial(settings)
    elif settings.ENCODER_MODEL_NAME is not None:
        encoder.check_available(settings.ENCODER_MODEL_NAME)
    device = inference.pick_device(settings.DEVICE)
    if device.type == "cuda" and device.index is None:
        device = inference.pick_device(f"cuda:{distributed.local_rank()}")
        torch.cuda.set_device(device)  # NCCL gathers through the current device
    distributed.start(device.type)
    try:
        folder = path.parent if saved else runs.new_folder(settings)
        runs.check_writable(folder)
        with runs.lock(folder):
            run, progress = prepare(settings, folder, device, saved, initial)
            with run.log or contextlib.nullcontext():
                fit(run, progress)
    finally:
        distributed.stop()


def prepare(
    settings: Any,
    folder: Path,
    device: torch.device,
    saved: dict[str, Any] | None = None,
    initial: dict[str, Any] | None = None,
) -> tuple[Run, Progress]:
    """Data, tokenizer, model and optimizer: fresh, with the weights of the checkpoint `initial`, or all as `saved`."""
    data_folder = distributed.first_rank_first(lambda: prepare_dataset.prepare_from(settings))
    records = {split: data.load_records(data_folder, split, settings.DATA_CUTOFF) for split in ("train", "val")}
    captions_sha256 = prepare_dataset.verify(data_folder)["captions_sha256"]
    if saved and saved["captions_sha256"] != captions_sha256:
        raise SystemExit(f"The captions in {data_folder} are not those of this run: a resume needs the same data.")
    train_captions = [caption for record in records["train"] for caption in record["captions"]]
    source = saved or initial
    if source:
        tokenizer, origin = tokenizers.from_json(source["tokenizer"]), "from the checkpoint"
    else:
        tokenizer, fresh = distributed.first_rank_first(
            lambda: tokenizers.load_or_train(train_captions, data_folder / "tokenizer", settings.VOCAB_SIZE)
        )
        origin = f"trained on {len(train_captions):,} captions" if fresh else "loaded"
    tokenizers.self_check(tokenizer)  # a freshly trained one as well
    runlog.console(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {origin}")

    torch.manual_seed(step_seed(settings.SEED, "initial weights"))
    model = models.build(
        config.as_dict(settings), tokenizer.get_vocab_size(), source["model_arguments"] if source else None
    ).to(device)
    if initial:
        checkpoint.check_fits(model, initial["model_state_dict"], settings.INIT_CHECKPOINT_PATH)
        model.load_state_dict(initial["model_state_dict"])
    sets = training_sets.make(settings, data_folder, records, tokenizer, model, device)
    optimizer = optim.build_optimizer(
        model, weight_decay=settings.WEIGHT_DECAY, betas=settings.ADAM_BETAS, eps=settings.ADAM_EPS,
        fused=device.type in ("cuda", "cpu"),
    )  # fmt: skip
    steps_per_epoch = len(epoch_steps(settings, sets["train"], epoch=0))
    total_steps = settings.NUM_EPOCHS * steps_per_epoch
    warmup = settings.WARMUP_STEPS
    if settings.WARMUP_RATIO is not None:
        warmup = round(settings.WARMUP_RATIO * total_steps)
    learning_rate = functools.partial(
        optim.learning_rate, peak=settings.LEARNING_RATE, schedule=settings.LR_SCHEDULE, warmup_steps=warmup,
        total_steps=total_steps, steps_per_epoch=steps_per_epoch, warmup_lr=settings.WARMUP_LR,
        min_lr=settings.MIN_LR, decay_rate=settings.LR_DECAY_RATE,
    )  # fmt: skip
    half = inference.pick_dtype(settings.PRECISION, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    if saved and len(saved["rng_state_dict"]) != distributed.world_size():
        raise SystemExit(
            f"This run had {len(saved['rng_state_dict'])} process(es), now there are {distributed.world_size()}: the "
            "batches would be others. Resume with the same number."
        )
    progress = restore(saved, model, optimizer, scaler) if saved else Progress()

    scored = settings.VALIDATION_SCORE_IMAGES
    run = Run(
        settings, folder, device, model, tokenizer, optimizer, scaler, sets["train"], sets["val"],
        sets["val"].first(scored), records["val"][:scored], learning_rate, captions_sha256,
        runlog.open_log(folder / "log.jsonl"), setup_wandb(settings, folder.name, saved),
    )  # fmt: skip
    describe(run, progress, steps_per_epoch, total_steps, warmup)
    return run, progress


def fit(run: Run, progress: Progress) -> None:
    """Epochs until NUM_EPOCHS or until patience ends; validates, saves, and draws the curves at the end."""
    settings = run.settings
    if progress.epoch >= settings.NUM_EPOCHS:
        runlog.console(f"Already finished: {progress.epoch} of NUM_EPOCHS = {settings.NUM_EPOCHS} epochs are done.")
    patience = settings.EARLY_STOPPING_PATIENCE
    captions = sum(len(ids) for ids in run.train_set.token_ids)
    bar = tqdm(
        total=captions * settings.NUM_EPOCHS, initial=captions * progress.epoch, unit="caption", smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 20, disable=distributed.rank() != 0, dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        while progress.epoch < settings.NUM_EPOCHS:
            if patience and progress.validations_without_gain >= patience:
                bar.write(f"Stopping early: no better loss in EARLY_STOPPING_PATIENCE = {patience} validations.")
                break
            bar.set_description(f"epoch {progress.epoch + 1}/{settings.NUM_EPOCHS}")
            steps = epoch_steps(settings, run.train_set, progress.epoch)
            train_one_epoch(run, steps, progress.epoch, progress.step, bar)
            progress = progress._replace(epoch=progress.epoch + 1, step=progress.step + len(steps))
            finished = progress.epoch == settings.NUM_EPOCHS
            improved = False
            if finished or progress.epoch % settings.VALIDATION_INTERVAL == 0:
                progress, improved = validate(run, progress, bar)
            save(run, progress, improved)
    if distributed.rank() == 0:
        curves = run.folder / "curves.png"
        report.plot_curves(report.read_log(run.folder / "log.jsonl"), curves, title=run.folder.name)
        best = next(iter(checkpoint.best_files(run.folder)), run.folder / "last.safetensors")
        print(f"curves: {curves}\nbest checkpoint: {best}\nscores: python evaluate.py --checkpoint {best}")
    if run.wandb_run is not None:
        run.wandb_run.finish()


def train_one_epoch(
    run: Run, steps: Sequence[Sequence[Sequence[data.Group]]], epoch: int, first_step: int, bar: tqdm
) -> None:
    """One pass over `steps` (per optimizer step its micro-batches of groups), a log row per step."""
    settings = run.settings
    run.model.train()
    loader = data.make_loader(
        run.train_set, [batch for step in steps for batch in step], settings.NUM_WORKERS, run.device.type == "cuda"
    )
    batches = iter(loader)
    encoder_peak = settings.ENCODER_LEARNING_RATE
    encoder_share = 1.0 if encoder_peak is None else encoder_peak / settings.LEARNING_RATE
    for number, micro_batches in enumerate(steps):
        step = first_step + number
        # Dropout is a function of (seed, step, rank) alone: nothing that ran before can change it.
        torch.manual_seed(step_seed(settings.SEED, step, distributed.rank()))
        lr = run.learning_rate(step)
        for group in run.optimizer.param_groups:
            group["lr"] = lr * (encoder_share if group["part"] == "encoder" else 1.0)
        start = time.perf_counter()
        loss, norm, captions = optimizer_step(run, [next(batches) for _ in micro_batches], step)
        seconds = time.perf_counter() - start
        row = {
            "type": "train", "step": step + 1, "epoch": round(epoch + (number + 1) / len(steps), 4), "loss": loss,
            "lr": lr, "grad_norm": norm, "captions_per_s": round(captions / seconds, 1),
        }  # fmt: skip
        runlog.write(run.log, row, run.wandb_run)
        bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}", refresh=False)
        bar.update(captions)


def optimizer_step(run: Run, micro_batches: list[data.Batch], step: int) -> tuple[float, float, int]:
    """One update. Returns (mean loss per real token of the whole batch, gradient norm, captions), over all ranks.

    Raises SystemExit, before the weights are touched, where loss or gradient are not finite.
    """
    settings = run.settings
    real = sum(int((batch.target_tokens != PAD).sum()) for batch in micro_batches)
    counts = torch.tensor([real, sum(len(batch.image_index) for batch in micro_batches)], device=run.device)
    tokens, captions = distributed.sum_(counts).tolist()
    run.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=run.device)
    for batch in micro_batches:
        with inference.autocast(run.device, inference.pick_dtype(settings.PRECISION, run.device)):
            loss = caption_loss(run.model, batch.to(run.device), settings.LABEL_SMOOTHING)
        run.scaler.scale(loss / max(tokens, 1)).backward()
        total += loss.detach()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    distributed.sum_gradients(parameters)
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, settings.GRAD_CLIP_VALUE or math.inf).item()
    mean_loss = distributed.sum_(total).item() / max(tokens, 1)
    if not math.isfinite(mean_loss) or not (math.isfinite(norm) or run.scaler.is_enabled()):
        raise SystemExit(
            f"Step {step + 1}: the loss is {mean_loss}, the gradient norm {norm}; stopped before the weights changed. "
            f"Lower LEARNING_RATE = {settings.LEARNING_RATE} or set PRECISION = 'fp32'. Checkpoints: {run.folder}"
        )
    run.scaler.step(run.optimizer)  # skips the update where fp16 gradients overflowed
    run.scaler.update()
    if run.scaler.is_enabled() and run.scaler.get_scale() < 2**-10:
        raise SystemExit(f"Step {step + 1}: fp16 gradients overflow at every scale; set PRECISION = 'fp32' or 'bf16'.")
    return mean_loss, norm, int(captions)


def caption_loss(model: models.ImageToTextModel, batch: data.Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats summed over the real tokens of the batch; padding is never mapped to the vocabulary."""
    logits = model.decoder.logits(model.hidden(*batch[:2], batch.image_index))  # (real tokens, V)
    targets = batch.target_tokens[batch.target_tokens != PAD]
    return F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)


@torch.no_grad()
def evaluate(run: Run) -> float:
    """The mean loss per token over the whole validation split, without label smoothing, in nats."""
    settings = run.settings
    run.model.eval()
    groups = data.in_order([len(ids) for ids in run.val_set.token_ids])
    mine = groups[distributed.rank() :: distributed.world_size()]
    batches = data.chunks(mine, images_per_batch(settings, run.val_set))
    loader = data.make_loader(run.val_set, batches, settings.NUM_WORKERS)
    totals = torch.zeros(2, dtype=torch.float64)  # loss, tokens
    for batch in loader:
        with inference.autocast(run.device, inference.pick_dtype(settings.PRECISION, run.device)):
            loss = caption_loss(run.model, batch.to(run.device))
        totals += torch.tensor([loss.item(), (batch.target_tokens != PAD).sum().item()])
    loss, tokens = distributed.sum_(totals.to(run.device if run.device.type == "cuda" else "cpu")).tolist()
    return loss / tokens


def validate(run: Run, progress: Progress, bar: tqdm) -> tuple[Progress, bool]:
    """Validation loss, a live score and sample captions; returns (progress, whether the loss is the best so far)."""
    val_loss = evaluate(run)
    improved = math.isfinite(val_loss) and (progress.best_val_loss is None or val_loss < progress.best_val_loss)
    if improved:
        progress = progress._replace(best_val_loss=val_loss, validations_without_gain=0)
    else:
        progress = progress._replace(validations_without_gain=progress.validations_without_gain + 1)
    if distributed.rank() != 0:
        return progress, improved
    row = {"type": "val", "step": progress.step, "epoch": progress.epoch, "val_loss": val_loss}
    text = f"epoch {progress.epoch}: validation loss {val_loss:.4f}" + (" (best)" if improved else "")
    if run.val_records:
        captions = inference.caption_images(
            run.model, run.tokenizer, run.val_images, batch_size=run.settings.EVAL_BATCH_SIZE, options=inference.GREEDY,
            device=run.device, precision=run.settings.PRECISION, workers=run.settings.NUM_WORKERS,
        )  # fmt: skip
        texts = [found[0].text for found in captions]
        scores, _ = evaluation.score_captions(run.val_records, texts, people=False)
        row |= scores["corpus"]
        truth = {kind: n["true"] / n["claims"] for kind, n in scores.get("truth", {}).items() if n["claims"]}
        row |= {f"true_{kind}": share for kind, share in truth.items()}
        samples = [
            {"file_name": record["file_name"], "caption": text}
            for record, text in zip(run.val_records[:3], texts[:3], strict=True)
        ]
        runlog.write(run.log, {"type": "samples", "step": progress.step, "samples": samples})
        text += f", CIDEr {100 * row['CIDEr']:.1f}, BLEU-4 {100 * row['Bleu_4']:.1f} (greedy, {len(texts)} images)"
        text += "".join(f", true {kind} {share:.0%}" for kind, share in truth.items())
        text += "".join(f"\n    {sample['file_name']}: {sample['caption']}" for sample in samples)
    runlog.write(run.log, row, run.wandb_run)
    bar.write(text)
    return progress, improved


def save(run: Run, progress: Progress, improved: bool) -> None:
    """last.safetensors, and under its own name where it is the best so far."""
    rng = distributed.gather([checkpoint.rng_state()])
    if distributed.rank() != 0:
        return
    last = run.folder / "last.safetensors"
    checkpoint.save(
        last,
        {
            **progress._asdict(),
            "model_state_dict": run.model.state_dict(),
            "optimizer_state_dict": optim.state_by_name(run.optimizer),
            "scheduler_state_dict": run.learning_rate.keywords,  # a pure function of the step: nothing to restore
            "scaler_state_dict": run.scaler.state_dict(),
            "rng_state_dict": {str(rank): state for rank, state in enumerate(rng)},
            "config": config.as_dict(run.settings),
            "config_constants": config.CONSTANTS,
            "tokenizer": run.tokenizer.to_str(),
            "model_arguments": run.model.arguments(),
            "captions_sha256": run.captions_sha256,
            "wandb_run_id": run.wandb_run.id if run.wandb_run is not None else None,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
    )
    if improved:
        checkpoint.copy(last, run.folder / checkpoint.best_name(progress.epoch, progress.best_val_loss))
        checkpoint.keep_best(run.folder, run.settings.KEEP_BEST)


def restore(saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.AdamW, scaler: Any) -> Progress:
    """Put a checkpoint's weights, optimizer, scaler and generators back; everything is checked before anything is."""
    checkpoint.check_fits(model, saved["model_state_dict"], "The checkpoint")
    optim.load_state_by_name(optimizer, saved["optimizer_state_dict"])
    model.load_state_dict(saved["model_state_dict"])
    if saved["scaler_state_dict"]:  # empty where the run did not use fp16
        scaler.load_state_dict(saved["scaler_state_dict"])
    own = saved["rng_state_dict"].get(str(distributed.rank()))
    if own is not None:
        checkpoint.set_rng_state(own)
    return Progress(**{name: saved[name] for name in Progress._fields})


def setup_wandb(settings: Any, run_name: str, saved: dict[str, Any] | None = None) -> Any:
    """The W&B run that LOG_WANDB asks for, continued on a resume; None where it is off or cannot be had."""
    if not settings.LOG_WANDB:
        return None
    run_id = saved["wandb_run_id"] if saved else None
    return runlog.start_wandb(
        config.as_dict(settings), settings.WANDB_PROJECT, settings.WANDB_ENTITY, run_name, run_id
    )


def describe(run: Run, progress: Progress, steps_per_epoch: int, total_steps: int, warmup: int) -> None:
    """Print what was derived, and begin the log with the settings."""
    settings = run.settings
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.model.parameters() if not p.requires_grad)
    captions = sum(len(ids) for ids in run.train_set.token_ids)
    precision = str(inference.pick_dtype(settings.PRECISION, run.device)).removeprefix("torch.")
    runlog.console(f"data: {len(run.train_set):,} images with {captions:,} captions; validation {len(run.val_set):,}")
    runlog.console(f"model: {trained:,} trained and {frozen:,} frozen weights, {precision} on {run.device}")
    runlog.console(
        f"batch: {distributed.world_size()} processes x {settings.GRAD_ACCUM_STEPS} x {settings.BATCH_SIZE} captions; "
        f"{steps_per_epoch} steps per epoch, {total_steps} in all, {warmup} of warmup"
    )
    if warmup >= total_steps:
        runlog.console(f"Note: the warmup of {warmup} steps outlasts the run; lower WARMUP_STEPS or set WARMUP_RATIO.")
    runlog.console(f"run: {run.folder}" + (f", resumed after epoch {progress.epoch}" if progress.step else ""))
    row = {"type": "resume" if progress.step else "start", "step": progress.step, "config": config.as_dict(settings)}
    runlog.write(run.log, row)


def epoch_steps(settings: Any, train_set: data.ImageTextDataset, epoch: int) -> list[list[list[data.Group]]]:
    counts = [len(ids) for ids in train_set.token_ids]
    groups = data.epoch_groups(counts, settings.CAPTIONS_PER_IMAGE, settings.SEED, epoch)
    ranks = (distributed.rank(), distributed.world_size())
    return data.epoch_steps(groups, images_per_batch(settings, train_set), settings.GRAD_ACCUM_STEPS, *ranks)


def images_per_batch(settings: Any, images: data.ImageTextDataset) -> int:
    """So many images that a batch has about BATCH_SIZE captions."""
    together = min(settings.CAPTIONS_PER_IMAGE, max(len(ids) for ids in images.token_ids))
    return max(1, settings.BATCH_SIZE // together)


def step_seed(*parts: Any) -> int:
    """A seed that depends on all parts and on nothing else; Python's hash() differs from process to process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print("\nStopped. Once an epoch was finished, this goes on: python train.py --resume-checkpoint-path last")
        raise SystemExit(130) from None
