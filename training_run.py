"""What a training run consists of, and how it is made ready: fresh, from given weights, or as a checkpoint left it."""

import dataclasses
import functools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

import batch_size
import checkpoint
import config
import dataset as data
import distributed
import inference
import model as models
import optim
import prepare_dataset
import runlog
import runs
import saver
import sharding
import signals
import snapshot
import tokenizer as tokenizers
import training_sets


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    settings: Any
    folder: Path
    device: torch.device
    model: models.ImageToTextModel
    tokenizer: Tokenizer
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    train_set: data.ImageTextDataset
    val_set: data.ImageTextDataset
    val_images: data.ImageTextDataset  # VALIDATION_SCORE_IMAGES of val_set (data.sample_places), with their val_records
    val_records: list[dict[str, Any]]
    learning_rate: functools.partial[float]  # of an optimizer step; `keywords`: what it depends on
    about: dict[str, Any]  # what every checkpoint of the run says of it
    saver: saver.Saver
    requests: signals.Requests
    log: Any
    copies: Sequence[runlog.Copy] = ()  # of the log, to W&B and TensorBoard


class Progress(NamedTuple):
    """What changes, and is saved with the weights."""

    epoch: int = 0  # finished epochs, validation included
    step: int = 0  # finished optimizer steps
    step_in_epoch: int = 0  # of these, in the epoch that is not finished
    best_val_loss: float | None = None
    best_cider: float | None = None  # greedy, over VALIDATION_SCORE_IMAGES
    validations_without_gain: int = 0
    nonfinite_in_a_row: int = 0  # steps that were skipped for a loss or gradient that is not finite


def prepare(
    settings: Any,
    folder: Path,
    device: torch.device,
    requests: signals.Requests,
    saved: dict[str, Any] | None = None,
    initial: dict[str, Any] | None = None,
) -> tuple[Run, Progress]:
    """Data, tokenizer, model and optimizer: fresh, with the weights of the checkpoint `initial`, or all as `saved`."""
    precision = inference.pick_dtype(settings.PRECISION, device)
    if settings.DETERMINISTIC:
        be_deterministic(saved["environment"]["threads"] if saved else None)
    source = saved or initial
    data_folder, records = load_records(settings)
    captions_sha256 = prepare_dataset.verify(data_folder)["captions_sha256"]
    if saved and saved["captions_sha256"] != captions_sha256:
        raise SystemExit(f"The captions in {data_folder} are not those of this run: a resume needs the same data.")
    tokenizer = make_tokenizer(settings, data_folder, records["train"], source)
    origin = "The checkpoint" if saved else settings.INIT_CHECKPOINT_PATH
    model = make_model(settings, tokenizer, source, origin, device)
    sets = training_sets.make(settings, data_folder, records, tokenizer, model, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    if settings.BATCH_SIZE == "auto":
        found = batch_size.choose(settings, model, sets["train"], scaler, device)
        settings = dataclasses.replace(settings, BATCH_SIZE=found)
        bound = "fit" if device.type == "cuda" else f"pay here ({batch_size.CPU_CAPTIONS})"
        runlog.console(
            f"BATCH_SIZE = 'auto': {found} captions at a time, as many as {bound} and leave an epoch "
            f"{batch_size.STEPS_AN_EPOCH} steps"
        )
    if settings.FSDP and distributed.world_size() > 1:
        sharding.spread(model, device)
    elif settings.FSDP:
        runlog.console("Note: FSDP has nothing to spread over one process; start several with torchrun.")
    optimizer = optim.build_optimizer(
        model, weight_decay=settings.WEIGHT_DECAY, betas=settings.ADAM_BETAS, eps=settings.ADAM_EPS,
        fused=device.type in ("cuda", "cpu"),
    )  # fmt: skip
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    runs.check_space(folder, sum(p.nbytes for p in model.parameters()) + 2 * trained)
    steps_per_epoch = len(epoch_steps(settings, sets["train"], epoch=0))
    total_steps = settings.NUM_EPOCHS * steps_per_epoch
    learning_rate = make_schedule(settings, steps_per_epoch, total_steps, saved)
    environment = snapshot.environment(device, precision, settings.DETERMINISTIC)
    groups_per_step = images_per_batch(settings, sets["train"]) * settings.GRAD_ACCUM_STEPS * distributed.world_size()
    steps = {"groups_per_step": groups_per_step, "steps_per_epoch": steps_per_epoch}
    progress = restore(saved, optimizer, scaler, steps) if saved else Progress()
    if saved and saved["config"]["VALIDATION_SCORE_IMAGES"] != settings.VALIDATION_SCORE_IMAGES:
        progress = progress._replace(best_cider=None)  # of other images: not to be compared
    for change in snapshot.environment_changes(saved["environment"], environment) if saved else ():
        runlog.console(f"Note: {change}: equality to the uninterrupted run is not promised.")

    log = open_log(folder, progress, resumed=saved is not None)
    about = {
        **steps,
        "scheduler_state_dict": learning_rate.keywords,  # a pure function of the step: nothing to restore
        "config": config.as_dict(settings),
        "config_constants": config.CONSTANTS,
        "tokenizer": tokenizer.to_str(),
        "model_arguments": model.arguments(),
        "captions_sha256": captions_sha256,
        "environment": environment,
        "wandb_run_id": saved.get("wandb_run_id") if saved else None,
    }
    scored = data.sample_places(records["val"], settings.VALIDATION_SCORE_IMAGES)
    run = Run(
        settings, folder, device, model, tokenizer, optimizer, scaler, sets["train"], sets["val"],
        sets["val"].part(scored), [records["val"][place] for place in scored], learning_rate, about,
        saver.Saver(folder, settings.KEEP_BEST), requests, log,
    )  # fmt: skip
    describe(run, progress, steps_per_epoch, total_steps, resumed=saved is not None)
    return run, progress


def load_records(settings: Any) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The folder of the prepared data, made where it is not there yet, and its pictures for "train" and "val"."""
    folder = distributed.first_rank_first(lambda: prepare_dataset.prepare_from(settings))
    splits = {"train": settings.TRAIN_SPLITS, "val": settings.VAL_SPLITS}
    return folder, {role: data.load_records(folder, names, settings.DATA_CUTOFF) for role, names in splits.items()}


def make_tokenizer(
    settings: Any, data_folder: Path, records: list[dict[str, Any]], source: dict[str, Any] | None
) -> Tokenizer:
    """The tokenizer of the checkpoint `source`; without one, of the captions of `records`."""
    if source:
        tokenizer, origin = tokenizers.from_json(source["tokenizer"]), "from the checkpoint"
    else:
        captions = [caption for record in records for caption in record["captions"]]
        tokenizer, fresh = distributed.first_rank_first(
            lambda: tokenizers.load_or_train(captions, data_folder / "tokenizer", settings.VOCAB_SIZE)
        )
        origin = f"trained on {len(captions):,} captions" if fresh else "loaded"
    tokenizers.self_check(tokenizer)  # a freshly trained one as well
    runlog.console(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {origin}")
    return tokenizer


def make_model(
    settings: Any, tokenizer: Tokenizer, source: dict[str, Any] | None, origin: str | None, device: torch.device
) -> models.ImageToTextModel:
    """The model on `device` with the weights of the checkpoint `source`; without one, as SEED has them.

    The weights come first of all that a checkpoint restores: a frozen encoder's features are made with them.
    """
    for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
        seed_generator(data.seed_of(settings.SEED, "initial weights") % 2**32)
    arguments = source["model_arguments"] if source else None
    model = models.build(config.as_dict(settings), tokenizer.get_vocab_size(), arguments)
    if source:
        checkpoint.check_fits(model, source["model_state_dict"], origin)
        checkpoint.check_finite(source, origin)
        model.load_state_dict(source["model_state_dict"])
    model.to(device)
    if settings.PRECISION == "tf32":
        torch.set_float32_matmul_precision("high")
    if settings.GRADIENT_CHECKPOINTING and not settings.FREEZE_ENCODER:
        model.encoder.checkpoint_blocks()
    if settings.COMPILE:
        model.compile_parts()
    return model


def make_schedule(
    settings: Any, steps_per_epoch: int, total_steps: int, saved: dict[str, Any] | None
) -> functools.partial[float]:
    """The learning rate of every optimizer step; its `keywords` say all that it depends on.

    The warmup stays that of the run's start: WARMUP_RATIO of more epochs would lead back into it.
    """
    warmup = settings.WARMUP_STEPS
    if settings.WARMUP_RATIO is not None:
        warmup = saved["scheduler_state_dict"]["warmup_steps"] if saved else round(settings.WARMUP_RATIO * total_steps)
    return functools.partial(
        optim.learning_rate, peak=settings.LEARNING_RATE, schedule=settings.LR_SCHEDULE, warmup_steps=warmup,
        total_steps=total_steps, steps_per_epoch=steps_per_epoch, warmup_lr=settings.WARMUP_LR,
        min_lr=settings.MIN_LR, decay_rate=settings.LR_DECAY_RATE,
    )  # fmt: skip


def restore(saved: dict[str, Any], optimizer: Any, scaler: Any, steps: dict[str, int]) -> Progress:
    """Put back all but the weights; SystemExit, before anything is, where its steps are not those of this start."""
    progress = Progress(**{name: saved.get(name, default) for name, default in Progress._field_defaults.items()})
    changed = [f"{name} {saved.get(name)} -> {now}" for name, now in steps.items() if saved.get(name) != now]
    if changed:
        raise SystemExit(
            f"The steps would hold other pictures ({', '.join(changed)}): with these BATCH_SIZE, GRAD_ACCUM_STEPS and "
            "number of processes the pictures cannot be dealt out as before. Use those of the run."
        )
    if progress.epoch * steps["steps_per_epoch"] + progress.step_in_epoch != progress.step:
        raise SystemExit(
            f"The checkpoint stands at step {progress.step}, after {progress.epoch} epochs and "
            f"{progress.step_in_epoch} steps; with {steps['steps_per_epoch']} steps an epoch that cannot be."
        )
    snapshot.restore(saved, optimizer, scaler, "The checkpoint")
    return progress


def open_log(folder: Path, progress: Progress, resumed: bool) -> Any:
    """The run's log, cut back to where the run goes on; what lies beyond is set aside, checkpoints as well."""
    if distributed.rank() != 0:
        return None
    runs.remove_strays(folder)
    names = runs.set_aside(folder, (progress.step, progress.epoch) if resumed else (-1, -1))
    moved = runlog.rewind(folder / "log.jsonl", progress.step, progress.epoch)
    if names:
        runlog.console(f"Going on from step {progress.step}; what was beyond is kept as {', '.join(names)}.")
    if moved:
        runlog.console(f"{moved} rows of log.jsonl beyond step {progress.step} are kept in {runlog.REPLACED}.")
    return runlog.open_log(folder / "log.jsonl")


def be_deterministic(threads: int | None) -> None:
    """Only operations that repeat to the bit; on a CPU with as many threads as the run had before.

    Raises nothing here: torch raises where it meets an operation that has no such form.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for torch before 2.9
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)


def describe(run: Run, progress: Progress, steps_per_epoch: int, total_steps: int, resumed: bool) -> None:
    """Print what was derived, and begin the log with the settings."""
    settings, warmup = run.settings, run.learning_rate.keywords["warmup_steps"]
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
    where = f", resumed after epoch {progress.epoch}, step {progress.step}" if resumed else ""
    runlog.console(f"run: {run.folder}{where}")
    row = {"type": "resume" if resumed else "start", "step": progress.step, "config": config.as_dict(settings)}
    runlog.write(run.log, row)


def epoch_steps(settings: Any, train_set: data.ImageTextDataset, epoch: int) -> list[list[list[data.Group]]]:
    counts = [len(ids) for ids in train_set.token_ids]
    groups = data.epoch_groups(counts, settings.CAPTIONS_PER_IMAGE, settings.SEED, epoch, train_set.weights)
    ranks = (distributed.rank(), distributed.world_size())
    return data.epoch_steps(groups, images_per_batch(settings, train_set), settings.GRAD_ACCUM_STEPS, *ranks)


def images_per_batch(settings: Any, images: data.ImageTextDataset) -> int:
    """So many images that a batch has about BATCH_SIZE captions."""
    together = min(settings.CAPTIONS_PER_IMAGE, max(len(ids) for ids in images.token_ids))
    return max(1, settings.BATCH_SIZE // together)
