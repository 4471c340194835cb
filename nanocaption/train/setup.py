"""What a training run consists of, and how it is made ready: fresh, from given weights, or as a checkpoint left it."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nanocaption.base import devices
from nanocaption.base.files import cases, open_to_append
from nanocaption.base.settings import Settings
from nanocaption.base.tensors import State, weights_told
from nanocaption.data.caption_text import as_read, as_trained
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.inputs import cache_place, make_inputs
from nanocaption.data.order import group_sizes, number_of_captions, seed_of, step_target
from nanocaption.data.prepared import (
    Record,
    check_splits,
    folder_name,
    kept_captions,
    load_records,
    sample_places,
    verify,
)
from nanocaption.data.questions import digest_of, load_questions, texts_of, with_captions
from nanocaption.data.shards import is_streamed
from nanocaption.data.stream import StreamedDataset, Texts, TrainingRecords
from nanocaption.data.tokenizer import ENCODING, check_tokenizer, load_or_train, tokenizer_from_json
from nanocaption.model.captioner import ImageToTextModel, build_model, check_sizes, load_weights
from nanocaption.model.encoder import Tower, check_available
from nanocaption.prepare.make import look_first, prepare_from
from nanocaption.runs import checkpoint, signals
from nanocaption.runs.folder import (
    BEST_CIDER,
    best_name,
    check_space,
    check_still_newest,
    check_writable,
    lock,
    new_folder,
    remove_strays,
    set_aside,
)
from nanocaption.runs.log import REPLACED, Copy, rewind_log, write_row
from nanocaption.runs.resume import Start, find_resume, load_initial
from nanocaption.runs.saver import Saver
from nanocaption.train import amount, average, batch_size, optim, sharding
from nanocaption.train.rewards import Rewards, make_rewards
from nanocaption.train.state import environment, environment_changes, restore_state, seed_generators
from nanocaption.train.steps import caption_counts, captions_together, check_visits, whole_steps
from nanocaption.train.used import Found, find_used, note_used, packed, refuse_changed, unpacked

# Steps, a tenth of the phase at most: those of a fresh optimizer are full-size at first, whatever the gradient.
SCST_WARMUP = 50
FEW_IMAGES = 64  # in a step: fewer are hardly a choice for a contrastive loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What stays the same from the first step to the last."""

    settings: Settings
    folder: Path
    device: torch.device
    model: ImageToTextModel
    tokenizer: Tokenizer
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    train_set: ImageTextDataset
    val_set: ImageTextDataset
    val_images: ImageTextDataset  # VALIDATION_SCORE_IMAGES of val_set (prepared.sample_places), with their val_records
    val_records: list[Record]
    plan: "Plan"
    about: State  # what every checkpoint of the run says of it
    saver: Saver
    requests: signals.Requests
    log: FileIO | None  # of the first process alone
    copies: Sequence[Copy] = ()  # of the log, to W&B and TensorBoard
    rewards: Rewards | None = None  # of self-critical training
    average: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)  # EMA_DECAY's, see train/average.py


class Splits(TypedDict):
    """The pictures of a run."""

    train: list[Record] | TrainingRecords  # the latter of a streamed set
    val: list[Record]


class Plan(NamedTuple):
    """How the pictures make up steps, and the learning rate of each."""

    captions_per_step: int  # that a step aims at
    schedule: optim.Schedule
    encoder_share: float  # of its learning rate
    scst: optim.Schedule | None = None  # of the self-critical phase, its steps counted from its own start
    scst_from: int = 0  # the step at which that begins

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0."""
        in_phase = self.scst is not None and step >= self.scst_from
        return self.scst.rate(step - self.scst_from) if in_phase else self.schedule.rate(step)


def is_scst(settings: Settings, epoch: int) -> bool:
    """Whether `epoch`, counted from 0, belongs to the self-critical phase."""
    return settings.OBJECTIVE == "scst" and epoch >= settings.SCST_START_EPOCH


def trains_head(settings: Settings) -> bool:
    """Whether the run trains a contrastive head, alone or beside the captions."""
    return settings.OBJECTIVE == "contrastive" or settings.CONTRASTIVE_WEIGHT > 0


class Progress(NamedTuple):
    """What changes, and is saved with the weights."""

    epoch: int = 0  # finished epochs, validation included
    step: int = 0  # finished optimizer steps
    step_in_epoch: int = 0  # of these, in the epoch that is not finished
    best_val_loss: float | None = None
    best_cider: float | None = None  # greedy, over VALIDATION_SCORE_IMAGES
    validations_without_gain: int = 0
    nonfinite_in_a_row: int = 0  # steps that were skipped for a loss or gradient that is not finite
    rewarded_steps: int = 0  # of self-critical training, those of the checkpoint that the run began with included
    averaged_steps: int = 0  # steps that the moving average has taken in

    def after_step(self, finite: bool, rewarded: bool = False, averaged: bool = False) -> "Progress":
        return self._replace(
            step=self.step + 1, step_in_epoch=self.step_in_epoch + 1, rewarded_steps=self.rewarded_steps + rewarded,
            nonfinite_in_a_row=0 if finite else self.nonfinite_in_a_row + 1,
            averaged_steps=self.averaged_steps + averaged,
        )  # fmt: skip

    def after_validation(
        self, val_loss: float, cider: float | None, by_cider: bool = False
    ) -> tuple["Progress", list[str]]:
        """What to go on with, and the names that this state gets as one of the best. cider: None where not scored.

        by_cider: rewards were trained on, which raise CIDEr and the loss: CIDEr alone says what is better.
        """
        done, names = self._replace(validations_without_gain=self.validations_without_gain + 1), []
        if not by_cider and math.isfinite(val_loss) and (self.best_val_loss is None or val_loss < self.best_val_loss):
            done = self._replace(best_val_loss=val_loss, validations_without_gain=0)
            names.append(best_name(self.epoch, val_loss))
        if cider is not None and (self.best_cider is None or cider > self.best_cider):
            done = done._replace(best_cider=cider, **({"validations_without_gain": 0} if by_cider else {}))
            names.append(BEST_CIDER)
        return done, names


def find_start(
    settings: Settings, read_folder: Callable[[Path, Settings], tuple[Settings, State]] | None = None
) -> Start:
    """What RESUME_CHECKPOINT_PATH and INIT_CHECKPOINT_PATH lead to; what is missing or unsuitable is told here.

    read_folder: reads an INIT_CHECKPOINT_PATH that is a folder, a model of another program.

    A fresh start looks at the raw data before the network; a resume needs the prepared set alone. Raises as
    resume.find_resume, make.look_first, resume.load_initial and encoder.check_available.
    """
    start = find_resume(settings) if settings.RESUME_CHECKPOINT_PATH is not None else Start(settings)
    if start.path is not None:
        return start
    if is_scst(settings, 0) and settings.INIT_CHECKPOINT_PATH is None:
        raise SystemExit(
            "OBJECTIVE = 'scst' begins with a captioner that cross-entropy has trained: give --init-checkpoint-path "
            "RUN/best_cider.safetensors, or SCST_START_EPOCH, the epochs of cross-entropy before it."
        )
    if settings.OBJECTIVE == "contrastive" and settings.INIT_CHECKPOINT_PATH is None:
        raise SystemExit(
            "OBJECTIVE = 'contrastive' trains a head on a captioner that stays as it is: give --init-checkpoint-path "
            "RUN/best_cider.safetensors, or train both together with --contrastive-weight 0.5."
        )
    look_first(settings)
    if settings.INIT_CHECKPOINT_PATH is not None:
        if read_folder is not None and Path(settings.INIT_CHECKPOINT_PATH).is_dir():
            settings, initial = read_folder(Path(settings.INIT_CHECKPOINT_PATH), settings)
            return start._replace(settings=settings, initial=initial)
        initial = load_initial(settings)
        if is_scst(settings, 0) and not initial["step"]:
            raise SystemExit(f"OBJECTIVE = 'scst': {settings.INIT_CHECKPOINT_PATH} has not been trained yet (step 0).")
        told = weights_told(initial)
        notes = [f"{settings.INIT_CHECKPOINT_PATH}: the weights are {told}"] if told else []
        return start._replace(initial=initial, notes=[*start.notes, *notes])
    if settings.ENCODER_MODEL_NAME is not None:
        check_available(settings.ENCODER_MODEL_NAME, settings.IMAGE_SIZE, settings.ENCODER_LAYERS)
    return start


@contextlib.contextmanager
def own_folder(start: Start) -> Iterator[Path]:
    """The folder of the run, a new one or that of the checkpoint to resume, held against a second process.

    SystemExit where it cannot be written, is held already, or has gone on since the checkpoint was read.
    """
    folder = start.path.parent if start.path else new_folder(start.settings)
    check_writable(folder)
    with lock(folder):
        if start.state and start.settings.RESUME_CHECKPOINT_PATH == "last":
            check_still_newest(folder, start.state)
        yield folder


def prepare(
    start: Start, folder: Path, device: torch.device, requests: signals.Requests
) -> tuple[Run, Progress]:
    """Data, tokenizer, model and optimizer: fresh, with the weights that `start` has for it, or all as it was saved."""
    settings, saved, source = start.settings, start.state, start.state or start.initial
    precision = devices.pick_dtype(settings.PRECISION, device)
    if settings.DETERMINISTIC:
        be_deterministic(saved["environment"]["threads"] if saved else None)
    data_folder, records, data = load_data(settings, saved)
    references = records["val"]
    rewards = rewards_of(settings, records["train"])
    records = learnt_from(settings, records)
    asked = questions_digest(settings, records["train"], saved)
    tokenizer = make_tokenizer(settings, data_folder, records["train"], source)
    origin = "The checkpoint" if saved else str(settings.INIT_CHECKPOINT_PATH)
    model = make_model(settings, tokenizer, source, origin, device, resumed=saved is not None)
    encoding = saved.get("encoding", 1) if saved else ENCODING
    sets = make_inputs(settings, data_folder, records, tokenizer, model, device, encoding, folder)
    streamed = stream_digest(sets["train"], saved)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    if settings.BATCH_SIZE == "auto":
        settings = settings.replace(BATCH_SIZE=batch_size.choose(settings, model, sets["train"], device))
    if settings.NUM_EPOCHS == "auto":
        settings = settings.replace(NUM_EPOCHS=amount.choose_epochs(len(whole_steps(settings, sets["train"], epoch=0))))
    check_visits(settings, sets["train"])
    optimizer = make_optimizer(settings, model, folder, device)
    plan = make_plan(settings, sets["train"], saved)
    now = environment(device, precision, settings.DETERMINISTIC)
    counts = caption_counts(sets["train"])
    fresh = Progress(rewarded_steps=start.initial.get("rewarded_steps", 0) if start.initial else 0)
    progress = restore(saved, settings, optimizer, scaler, plan, counts, now) if saved else fresh
    mean, progress = begin_average(settings, optimizer, saved, progress)
    scored = sample_places(references, settings.VALIDATION_SCORE_IMAGES)
    about = {
        "captions_per_step": plan.captions_per_step,
        "steps_per_epoch": plan.schedule.steps_per_epoch,
        "scheduler_state_dict": plan.schedule._asdict(),
        "config": dict(settings.values),
        "config_constants": dict(settings.constants),
        "tokenizer": tokenizer.to_str(),
        "model_arguments": model.arguments(),
        **data,
        **streamed,
        **asked,
        "encoding": encoding,
        "environment": now,
        "wandb_run_id": saved.get("wandb_run_id") if saved else None,
    }
    run = Run(
        settings=settings, folder=folder, device=device, model=model, tokenizer=tokenizer, optimizer=optimizer,
        scaler=scaler, train_set=sets["train"], val_set=sets["val"], val_images=sets["val"].part(scored),
        val_records=[references[place] for place in scored], plan=plan, average=mean, rewards=rewards,
        saver=Saver(folder, settings.KEEP_BEST), requests=requests,
        log=begin_log(folder, progress, resumed=saved is not None), about=cast(State, about),
    )  # fmt: skip
    describe(run, progress, resumed=saved is not None)
    return run, progress


def rewards_of(settings: Settings, records: Sequence[Record] | TrainingRecords) -> Rewards | None:
    """What OBJECTIVE "scst" rewards with: the training captions as they were written. None with "xe"."""
    if settings.OBJECTIVE != "scst":
        return None
    written = list(records.raw()) if isinstance(records, TrainingRecords) else records  # CIDEr needs them in memory
    rewards, notes = make_rewards(written, settings.SCST_REWARD)
    for note in notes:
        devices.console(note)
    return rewards


def questions_digest(
    settings: Settings, records: Sequence[Record] | TrainingRecords, saved: State | None
) -> dict[str, str]:
    """{"questions_sha256": ...} of a run on questions, for the checkpoints; {} of another.

    SystemExit where the run that saved had others: those of drawn pictures are made by this program's own code.
    """
    if not settings.QUESTIONS:
        return {}
    found = digest_of(records)
    if saved and saved.get("questions_sha256", found) != found:
        raise SystemExit("The questions about the training pictures are not those of this run: another version draws "
                         "others. Finish it with the version that began it, or start a fresh run from its weights with "
                         "--init-checkpoint-path.")  # fmt: skip
    return {"questions_sha256": found}


def stream_digest(images: ImageTextDataset, saved: State | None) -> dict[str, object]:
    """What checkpoints say of a streamed set, {} of another; of a run that goes on, what they said before.

    SystemExit where the run that saved read its pictures in another order: some would come twice in this epoch.
    """
    before = {name: saved[name] for name in ("stream_sha256", "stream_own") if name in saved} if saved else {}  # type: ignore[literal-required]
    own = isinstance(images, StreamedDataset) and "stream_own" in before
    if isinstance(images, StreamedDataset):
        found = images.own_digest() if own else images.digest()
        as_before = found == (before["stream_own"]["sha256"] if own else before.get("stream_sha256"))
    else:
        as_before = not before
    if saved and not as_before:
        raise SystemExit(
            f"The pictures of {images.images_dir.parent} do not lie as they did for this run: others, the same ones in "
            "other shards, or streamed now and not then (or the other way round), so that some would come twice in "
            "this epoch. Put the old ones back, or start a fresh run from its weights with --init-checkpoint-path."
        )
    if saved or not isinstance(images, StreamedDataset):
        return before
    return {"stream_sha256": found, "stream_own": {"counts": images.counted, "sha256": images.own_digest()}}


def told_of_others(data_folder: Path, digest: str) -> str:
    """Why a run on the captions.json of this digest cannot go on with the set in data_folder, and what to do."""
    told = f"The captions in {data_folder} are not those of this run: a resume needs the same data."
    kept = kept_captions(data_folder, digest)
    if not kept.exists():
        return told
    return (f"{told} The set was made anew since (--remake, or a larger DATA_CUTOFF); those of this run are kept in "
            f"{kept}. Start a fresh run on the new set, with --init-checkpoint-path to begin with the weights of this.")


def load_data(settings: Settings, saved: State | None) -> tuple[Path, Splits, dict[str, object]]:
    """The folder of the data, the pictures of "train" and "val", and what checkpoints say of them.

    A run that goes on finds its own pictures again, whatever else has come to the set since. SystemExit, naming what
    has changed, where they are not what they were.
    """
    if saved and "used" in saved and not settings.QUESTIONS:
        return own_data(settings, saved)
    folder, records = load_splits(settings)
    digest = verify(folder)["captions_sha256"]
    if saved:
        if saved["captions_sha256"] != digest:
            raise SystemExit(told_of_others(folder, saved["captions_sha256"]))
        return folder, records, {"captions_sha256": digest}  # of an earlier version, or of questions
    if settings.QUESTIONS:  # which go by the digest of the whole file, and by that of the questions
        return folder, records, {"captions_sha256": digest}
    lists = {role: rows for role, rows in records.items() if isinstance(rows, list)}
    return folder, records, {"captions_sha256": digest, "used": packed(note_used(settings, folder, lists))}


def own_data(settings: Settings, saved: State) -> tuple[Path, Splits, dict[str, object]]:
    """`load_data` of a run whose checkpoint has noted its pictures."""
    folder, used = Path(settings.DATA_DIR) / folder_name(settings.DATASET), unpacked(saved["used"])
    streamed = "stream_own" in saved

    def find() -> Found:
        found = find_used(settings, folder, used) if (folder / "captions.json").is_file() else None
        if streamed or found is None or (found.missing and not found.changed):
            try:
                prepare_from(settings, compare=False)  # what is missing may be made again
            except ValueError as error:
                if found is None or not found.missing:
                    raise
                print(error)  # and then the names
            found = find_used(settings, folder, used)
        return found

    found = devices.first_rank_first(find)
    refuse_changed(found, folder)
    for note in found.notes:
        devices.console(f"Note: {note}")
    about = {"captions_sha256": saved["captions_sha256"], "used": saved["used"]}
    if not streamed:
        return folder, {"train": found.records["train"], "val": found.records["val"]}, about
    train = TrainingRecords(folder, settings.TRAIN_SPLITS, settings.DATA_CUTOFF, settings.CAPTION_CASE)
    train.only(saved["stream_own"]["counts"])
    return folder, {"train": train, "val": found.records["val"]}, about


def load_splits(settings: Settings) -> tuple[Path, Splits]:
    """The folder of the prepared data, made where it is not there yet, and its pictures for "train" and "val"."""
    folder = devices.first_rank_first(lambda: prepare_from(settings, compare=False))
    splits = {"train": settings.TRAIN_SPLITS, "val": settings.VAL_SPLITS}
    if settings.QUESTIONS:
        train, val = (load_questions(folder, splits[role], settings.DATA_CUTOFF, devices.console)
                      for role in ("train", "val"))  # fmt: skip
        if settings.CAPTION_QUESTION is not None:
            train, captions = with_captions(train, settings.CAPTION_QUESTION)
            devices.console(f"captions, train: {captions:,} are learnt as answers to {settings.CAPTION_QUESTION!r}")
        return folder, {"train": train, "val": val}
    if is_streamed(folder):
        check_splits(folder / "captions.json", settings.TRAIN_SPLITS, verify(folder)["counts"])
        train = TrainingRecords(folder, settings.TRAIN_SPLITS, settings.DATA_CUTOFF, settings.CAPTION_CASE)
        return folder, {"train": train, "val": load_records(folder, settings.VAL_SPLITS, settings.DATA_CUTOFF)}
    records = {role: load_records(folder, names, settings.DATA_CUTOFF) for role, names in splits.items()}
    for role, own in records.items():
        if bare := [record["file_name"] for record in own if not record["captions"]]:
            raise ValueError(f"{folder}, {role}: {cases(bare, 'picture')} without a caption, but with questions: train "
                             "on these with QUESTIONS = True (--questions)")  # fmt: skip
    return folder, records


def learnt_from(settings: Settings, records: Splits) -> Splits:
    """What a model learns from, and its validation loss is over: captions normalised, in training none of them twice.

    Only here: references stay as they are. What is left out is told. (Of a streamed set all this is done and told where
    its captions are read.)
    """
    if settings.QUESTIONS:
        return records  # normalised where they are encoded
    if isinstance(records["train"], TrainingRecords):
        return {"train": records["train"], "val": as_read(records["val"], settings.CAPTION_CASE)}
    train, repeats = as_trained(records["train"], settings.CAPTION_CASE)
    if repeats:
        total = sum(len(record["captions"]) for record in records["train"])
        devices.console(f"captions, train: {repeats:,} of {total:,} say the same as another one of their picture and "
                        "are left out of training")  # fmt: skip
    return {"train": train, "val": as_read(records["val"], settings.CAPTION_CASE)}


def make_tokenizer(
    settings: Settings, data_folder: Path, records: list[Record] | TrainingRecords, source: State | None
) -> Tokenizer:
    """The tokenizer of the checkpoint `source`; without one, of the captions of `records`, or of its questions."""
    if source:
        tokenizer, origin = tokenizer_from_json(source["tokenizer"]), "from the checkpoint"
    else:
        captions: Sequence[str]
        if settings.QUESTIONS:
            captions, place, kind = texts_of(records, settings.CAPTION_CASE), "tokenizer_questions", "texts"
        else:
            captions = [caption for record in records for caption in record["captions"]] if isinstance(
                records, list) else Texts(records)  # fmt: skip
            place, kind = "tokenizer", "captions"
        tokenizer, fresh = devices.first_rank_first(
            lambda: load_or_train(captions, cache_place(settings, data_folder) / place, settings.VOCAB_SIZE)
        )
        origin = f"trained on {len(captions):,} {kind}" if fresh else "loaded"
    check_tokenizer(tokenizer)  # a freshly trained one as well
    devices.console(f"tokenizer: {tokenizer.get_vocab_size()} tokens, {origin}")
    return tokenizer


def make_model(
    settings: Settings, tokenizer: Tokenizer, source: State | None, origin: str, device: torch.device, resumed: bool
) -> ImageToTextModel:
    """The model on `device` with the weights of the checkpoint `source`; without one, as SEED has them.

    Where the checkpoint holds an average, a run that is resumed goes on with the weights beside it, and a fresh one
    begins with the average.

    The weights come first of all that a checkpoint restores: a frozen encoder's features are made with them.
    """
    arguments = dict(source.get("model_arguments", {})) if source else None
    if source:
        weights = source["model_state_dict"]
        check_sizes(settings.values, tokenizer.get_vocab_size(), cast(Tower, arguments), weights, origin)
    had_head = bool(arguments and arguments.pop("contrastive", False))
    seed_generators(seed_of(settings.SEED, "initial weights") % 2**32)
    model = build_model(settings.values, tokenizer.get_vocab_size(), cast(Tower | None, arguments))
    if trains_head(settings):
        seed_generators(seed_of(settings.SEED, "contrastive head") % 2**32)
        model.add_contrastive_head()
    if source:
        checkpoint.check_finite(source, origin)
        weights = source["model_state_dict"] | (source.get("raw_state_dict", {}) if resumed else {})
        load_weights(model, with_head(model, weights, had_head, origin), cast(Tower, arguments), origin)
    if settings.OBJECTIVE == "contrastive":
        model.requires_grad_(False)
        assert model.retrieval is not None
        model.retrieval.requires_grad_(True)
    model.to(device)
    if settings.PRECISION == "tf32":
        torch.set_float32_matmul_precision("high")
    if settings.GRADIENT_CHECKPOINTING and not settings.FREEZE_ENCODER:
        model.encoder.checkpoint_blocks()
    if settings.COMPILE:
        model.compile_parts()
    return model


def with_head(
    model: ImageToTextModel, weights: Mapping[str, Tensor], had_head: bool, origin: str
) -> dict[str, Tensor]:
    """The weights of a checkpoint, with those of the model's own contrastive head where the checkpoint has none, and
    without its head where the model has none: the text's side of that would no longer fit the decoder."""
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("retrieval.")}
    if had_head and not head:
        devices.console(f"{origin} has a contrastive head, which is left out: CONTRASTIVE_WEIGHT is 0")
        return {name: tensor for name, tensor in weights.items() if not name.startswith("retrieval.")}
    return dict(weights) if had_head else {**head, **weights}


def make_optimizer(
    settings: Settings, model: ImageToTextModel, folder: Path, device: torch.device
) -> torch.optim.AdamW:
    """The optimizer of the weights, spread first where FSDP asks. SystemExit where the disk cannot hold checkpoints."""
    if settings.FSDP and devices.world_size() > 1:
        sharding.spread(model, device)
    elif settings.FSDP:
        devices.console("Note: FSDP has nothing to spread over one process; start several with torchrun.")
    optimizer = optim.build_optimizer(
        model, weight_decay=settings.WEIGHT_DECAY, betas=settings.ADAM_BETAS, eps=settings.ADAM_EPS,
        fused=device.type in ("cuda", "cpu"),
    )  # fmt: skip
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    check_space(folder, sum(p.nbytes for p in model.parameters()) + (3 if settings.EMA_DECAY else 2) * trained)
    return optimizer


def make_plan(settings: Settings, train_set: ImageTextDataset, saved: State | None) -> Plan:
    """The steps of the run. The warmup stays that of its start: WARMUP_RATIO of more epochs would lead back into it."""
    steps_per_epoch = len(whole_steps(settings, train_set, epoch=0))
    all_steps = settings.NUM_EPOCHS * steps_per_epoch
    scst_from = settings.SCST_START_EPOCH * steps_per_epoch
    two_phases = settings.OBJECTIVE == "scst" and scst_from > 0
    total_steps = scst_from if two_phases else all_steps
    warmup = settings.WARMUP_STEPS
    if settings.WARMUP_RATIO is not None:
        warmup = saved["scheduler_state_dict"]["warmup_steps"] if saved else round(settings.WARMUP_RATIO * total_steps)
    schedule = optim.Schedule(
        peak=settings.LEARNING_RATE, schedule=settings.LR_SCHEDULE, warmup_steps=warmup, total_steps=total_steps,
        steps_per_epoch=steps_per_epoch, warmup_lr=settings.WARMUP_LR, min_lr=settings.MIN_LR,
        decay_rate=settings.LR_DECAY_RATE,
    )  # fmt: skip
    target = step_target(caption_counts(train_set), settings.CAPTIONS_PER_IMAGE, captions_together(settings))
    own = settings.ENCODER_LEARNING_RATE
    encoder_share = 1.0 if own is None or settings.FREEZE_ENCODER else own / settings.LEARNING_RATE
    scst = schedule._replace(
        peak=settings.SCST_LEARNING_RATE, schedule=settings.SCST_LR_SCHEDULE, total_steps=all_steps - scst_from,
        warmup_steps=min(SCST_WARMUP, (all_steps - scst_from) // 10), warmup_lr=0.0,
    )  # fmt: skip
    return Plan(target, schedule, encoder_share, *((scst, scst_from) if settings.OBJECTIVE == "scst" else ()))


def restore(
    saved: State,
    settings: Settings,
    optimizer: torch.optim.AdamW,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    counts: Sequence[int],
    now: Mapping[str, object],
) -> Progress:
    """Put back all but the weights; SystemExit, before anything is, where its steps are not those of this start.

    counts: captions of each picture. now: the environment, whose differences from the saved one are told.
    """
    fields: dict[str, Any] = {name: saved.get(name, default) for name, default in Progress._field_defaults.items()}
    progress = Progress(**fields)
    check_steps(saved, settings, plan, counts)
    if progress.epoch * plan.schedule.steps_per_epoch + progress.step_in_epoch != progress.step:
        raise SystemExit(
            f"The checkpoint stands at step {progress.step}, after {progress.epoch} epochs and "
            f"{progress.step_in_epoch} steps; with {plan.schedule.steps_per_epoch} steps an epoch that cannot be."
        )
    restore_state(saved, optimizer, scaler)
    for change in environment_changes(saved["environment"], now):
        devices.console(f"Note: {change}: equality to the uninterrupted run is not promised.")
    if saved["config"]["VALIDATION_SCORE_IMAGES"] != settings.VALIDATION_SCORE_IMAGES:
        progress = progress._replace(best_cider=None)  # of other images: not to be compared
    return progress


def begin_average(
    settings: Settings, optimizer: torch.optim.AdamW, saved: State | None, progress: Progress
) -> tuple[average.Average, Progress]:
    """The moving average to go on with, none where EMA_DECAY is 0, and `progress` with the steps that are in it."""
    if not settings.EMA_DECAY:
        return {}, progress._replace(averaged_steps=0)
    if saved is None or "raw_state_dict" not in saved:
        progress = progress._replace(averaged_steps=0)  # it begins here
    return average.begin(optim.parameters_by_name(optimizer), saved), progress


def check_steps(saved: State, settings: Settings, plan: Plan, counts: Sequence[int]) -> None:
    """SystemExit where a step would hold other pictures than in the run that saved.

    Earlier checkpoints count groups, not captions: their steps are these where all groups are equally large.
    """
    captions = saved.get("captions_per_step")
    if captions is None and len(sizes := group_sizes(counts, settings.CAPTIONS_PER_IMAGE)) == 1:
        captions = saved["groups_per_step"] * sizes.pop()
    steps = {"captions_per_step": plan.captions_per_step, "steps_per_epoch": plan.schedule.steps_per_epoch}
    before = {"captions_per_step": captions, "steps_per_epoch": saved["steps_per_epoch"]}
    if steps != before:
        changed = ", ".join(f"{name} {before[name]} -> {steps[name]}" for name in steps)
        raise SystemExit(
            f"The steps would hold other pictures ({changed}): the run was begun by a version that counted them "
            "otherwise, and cannot be continued to the same end. Start a fresh run from its weights with "
            "--init-checkpoint-path, or finish it with that version."
        )


def begin_log(folder: Path, progress: Progress, resumed: bool) -> FileIO | None:
    """The run's log, cut back to where the run goes on; what lies beyond is set aside, checkpoints as well."""
    if devices.rank() != 0:
        return None
    remove_strays(folder)
    names = set_aside(folder, (progress.step, progress.epoch) if resumed else (-1, -1))
    moved = rewind_log(folder / "log.jsonl", progress.step, progress.epoch)
    if names:
        devices.console(f"Going on from step {progress.step}; what was beyond is kept as {', '.join(names)}.")
    if moved:
        devices.console(f"{moved} rows of log.jsonl beyond step {progress.step} are kept in {REPLACED}.")
    return open_to_append(folder / "log.jsonl")


def be_deterministic(threads: int | None) -> None:
    """Only operations that repeat to the bit; on a CPU with as many threads as the run had before.

    Raises nothing here: torch raises where it meets an operation that has no such form.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for torch before 2.9
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    if threads is not None:
        torch.set_num_threads(threads)


def told_of_head(settings: Settings, images: float) -> None:
    """Print what the contrastive loss compares. images: in a step, about."""
    how = "alone, the captioner stays as it is" if settings.OBJECTIVE == "contrastive" else (
        f"with weight {settings.CONTRASTIVE_WEIGHT:g} beside the captions")  # fmt: skip
    devices.console(f"contrastive head: {settings.CONTRASTIVE_LOSS} loss {how}; about {images:.0f} images in a step")
    if images < FEW_IMAGES:
        devices.console(f"Note: {images:.0f} images in a step are few for a contrastive loss: raise BATCH_SIZE, or "
                        "GRAD_ACCUM_STEPS, which enlarges what is compared as well")  # fmt: skip


def describe(run: Run, progress: Progress, resumed: bool) -> None:
    """Print what was derived, and begin the log with the settings."""
    settings, schedule = run.settings, run.plan.schedule
    warmup = schedule.warmup_steps
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in run.model.parameters() if not p.requires_grad)
    captions = sum(caption_counts(run.train_set))
    in_steps = [number_of_captions(step) for step in whole_steps(settings, run.train_set, progress.epoch)]
    precision = str(devices.pick_dtype(settings.PRECISION, run.device)).removeprefix("torch.")
    what = "questions" if settings.QUESTIONS else "captions"
    devices.console(f"data: {len(run.train_set):,} images with {captions:,} {what}; validation {len(run.val_set):,}")
    for note in amount.warnings(settings, len(run.train_set), len(run.val_set)):
        devices.console(note)
    devices.console(f"model: {trained:,} trained and {frozen:,} frozen weights, {precision} on {run.device}")
    devices.console(
        f"batch: {devices.world_size()} processes x {settings.GRAD_ACCUM_STEPS} x {settings.BATCH_SIZE} captions; "
        f"{schedule.steps_per_epoch} steps per epoch, {schedule.steps_per_epoch * settings.NUM_EPOCHS} in all, "
        f"{0 if is_scst(settings, 0) else warmup} of warmup; "
        f"captions in a step: {sum(in_steps) / len(in_steps):.1f} on average, {max(in_steps)} at most"
    )
    if run.plan.scst is not None:
        devices.console(
            f"self-critical from step {run.plan.scst_from} on: {settings.SCST_SAMPLES} captions drawn per picture, "
            f"rate {settings.SCST_LEARNING_RATE:g} after {run.plan.scst.warmup_steps} steps of warmup, "
            f"{settings.SCST_LR_SCHEDULE}, a fresh optimizer"
        )
    if devices.world_size() > 1:
        product = captions_together(settings)
        others = [n for n in range(1, 65) if product % n == 0 and n != devices.world_size()]
        devices.console(f"Note: the steps are those of any number of processes whose BATCH_SIZE x GRAD_ACCUM_STEPS x "
                        f"processes is {product}: {', '.join(map(str, others[:8]))} can share them")  # fmt: skip
    if trains_head(settings):
        told_of_head(settings, sum(in_steps) / len(in_steps) * len(run.train_set) / captions)
    if settings.EMA_DECAY:
        devices.console(f"average: EMA_DECAY = {settings.EMA_DECAY}; validated in the place of the weights")
    if warmup >= schedule.total_steps and not is_scst(settings, 0):
        devices.console(f"Note: the warmup of {warmup} steps outlasts the run; lower WARMUP_STEPS or set WARMUP_RATIO.")
    where = f", resumed after epoch {progress.epoch}, step {progress.step}" if resumed else ""
    devices.console(f"run: {run.folder}{where}")
    row = {"type": "resume" if resumed else "start", "step": progress.step, "config": dict(settings.values)}
    write_row(run.log, row)
