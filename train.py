"""Train a captioner.

    python train.py                                       the built-in demo set: minutes on a laptop's CPU
    python train.py recipes/flickr8k_vit_tiny.py          a recipe: a Python file of settings
    python train.py --resume-checkpoint-path last         continue the newest run to the same bits
    torchrun --nproc-per-node 2 train.py                  several processes

Every setting stands in config.py and is a flag, too: python train.py --help
Reading order: main() prepares, fit() loops over epochs, train_one_epoch() over steps. What a run consists of is made
ready in nanocaption/train/setup.py; nanocaption/train/step.py is one step.
"""

import signal
import sys

from nanocaption.base import cli
from nanocaption.base.settings import load_settings

if __name__ == "__main__":
    load_settings(sys.argv[1:])  # --help and mistakes answer before torch is imported
    cli.begin()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nothing to save yet

import contextlib
import dataclasses
import itertools
import math
import operator
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch
from tqdm import tqdm

from nanocaption.base import devices
from nanocaption.base.files import log_rows
from nanocaption.data.dataset import Batch, ImageTextDataset
from nanocaption.data.loader import deaf_to_children, make_loader
from nanocaption.data.order import Group, flattened, in_order, number_of_captions, packed, seed_of
from nanocaption.data.questions import asking
from nanocaption.export.from_transformers import read_foreign
from nanocaption.export.uploads import check_hub, uploads
from nanocaption.model.options import GREEDY
from nanocaption.runs import signals
from nanocaption.runs.folder import LAST, best_of
from nanocaption.runs.log import write_row
from nanocaption.runs.tracking import copies, setup_wandb, start_tensorboard
from nanocaption.score.curves import plot_curves, read_thinned
from nanocaption.score.question_scores import accuracy_of
from nanocaption.score.retrieval import told
from nanocaption.score.scoring import score_captions
from nanocaption.train import average, contrastive, profile, scst, sharding
from nanocaption.train.faults import check_sound, explain_fault, pictures_of_step, report_nonfinite, tell_problem
from nanocaption.train.losses import caption_objective
from nanocaption.train.objective import begin_objective, ready
from nanocaption.train.optim import parameters_by_name, set_learning_rates
from nanocaption.train.setup import Progress, Run, find_start, is_scst, own_folder, prepare, trains_head
from nanocaption.train.state import seed_generators, take_state
from nanocaption.train.step import HalfUpdate, accumulate_gradients, read_found, take_update
from nanocaption.train.steps import caption_counts, steps_of_epoch, whole_steps
from nanocaption.use.answering import answer_batches
from nanocaption.use.captioning import caption_batches


def main(argv: list[str] | None = None) -> None:
    start = find_start(load_settings(sys.argv[1:] if argv is None else argv), read_foreign)
    settings = start.settings
    device = devices.pick_device(settings.DEVICE, devices.local_rank())
    with signals.catch() as requests:
        devices.start(device.type)
        try:
            check_hub(settings)
            for note in start.notes:
                devices.console(note)
            if settings.PROFILE:
                return profile.main(start, device, requests)
            with own_folder(start) as folder:
                run, progress = prepare(start, folder, device, requests)
                shown = {r["file_name"]: path for r, path in zip(run.val_records, run.val_images.paths, strict=True)}
                wandb_run = setup_wandb(settings, folder, run.about, resumed=start.state is not None)
                board = start_tensorboard(settings, folder, progress.step)
                with (
                    run.log or contextlib.nullcontext(),
                    copies(wandb_run, board, shown) as of_log,
                    uploads(settings, folder, run.saver),
                ):
                    fit(dataclasses.replace(run, copies=of_log), progress)
        finally:
            devices.stop()


def fit(run: Run, progress: Progress) -> None:
    """Epochs until NUM_EPOCHS or until patience ends; draws the curves at the end.

    Whatever stops it, the last sound state is saved: a signal, a mistake found on the way, a full memory.
    """
    epochs = run.settings.NUM_EPOCHS
    run.requests.training = True
    if progress.epoch >= epochs:
        devices.console(f"Already finished: {progress.epoch} of NUM_EPOCHS = {epochs} epochs are done.")
        if devices.max_(int(not (run.folder / LAST).exists()))[0]:
            save(run, progress, wait=True)
    elif progress.step == 0:
        save(run, progress, wait=True)  # a kill before the next one finds this, and a bad disk is noticed now
    with progress_bar(run, progress) as bar:
        try:
            for reached in train_epochs(run, progress, bar):
                progress = reached
            run.saver.wait()
            if devices.max_(int(run.saver.failed))[0]:
                save(run, progress, wait=True)  # stopped early: nothing would try again
        except HalfUpdate:
            raise  # the weights are between two steps: not saved
        except (Exception, SystemExit) as error:
            leave(run, progress, error)
        finally:
            run.saver.wait()
            run.requests.training = False
    if devices.rank() == 0:
        curves = run.folder / "curves.png"
        plot_curves(read_thinned(run.folder / "log.jsonl"), curves, title=run.folder.name)
        best = best_of(run.folder) or run.folder / LAST
        print(f"curves: {curves}\nbest checkpoint: {best}")
        print(f"scores: python evaluate.py --checkpoint {shlex.quote(str(best))}")


def train_epochs(run: Run, progress: Progress, bar: tqdm) -> Iterator[Progress]:
    """Train, validate and save; yields where each step and each epoch leaves the run."""
    saved_at = time.monotonic()
    while progress.epoch < run.settings.NUM_EPOCHS and not out_of_patience(run, progress):
        for reached in train_one_epoch(run, progress, bar):
            progress = reached
            yield progress
            if boundary(run, progress, time.monotonic() - saved_at):
                save(run, progress)
                saved_at = time.monotonic()
        progress, names = finish_epoch(run, progress, bar)
        yield progress
        save(run, progress, names, wait=progress.epoch == run.settings.NUM_EPOCHS)
        saved_at = time.monotonic()


def train_one_epoch(run: Run, progress: Progress, bar: tqdm) -> Iterator[Progress]:
    """The steps of the present epoch that are not done yet; yields where each leaves the run, a log row per step."""
    settings = run.settings
    steps = steps_of_epoch(settings, run.train_set, progress.epoch)
    todo = steps[progress.step_in_epoch :]  # per optimizer step its micro-batches of groups
    if not todo:
        return  # stopped in the validation after the last step
    bar.set_description(f"epoch {progress.epoch + 1}/{settings.NUM_EPOCHS}")
    run.model.train()
    objective = begin_objective(run, progress)
    pictures = run.train_set.at_epoch(progress.epoch)
    reading = read_steps(run, pictures, todo)
    batches, wait = next(reading)
    for number, groups in enumerate(todo, start=1):
        start = time.perf_counter()
        # What a step draws is a function of (seed, step, rank) alone: nothing that ran before can change it.
        seed_generators(seed_of(settings.SEED, progress.step, devices.rank()))
        rates = set_learning_rates(run.optimizer, run.plan.rate(progress.step), run.plan.encoder_share)
        batches, drawn = ready(run, progress, batches, groups, pictures.resident)
        begun = accumulate_gradients(run, objective, batches, pictures.resident, step=progress.step)
        waited = wait
        if number < len(todo):
            batches, wait = next(reading)  # made while a GPU works on this step
        found = read_found(begun)
        finite = found.finite(scaled=run.scaler.is_enabled())
        # Where all captions of each picture earn the same, nothing changes the weights: not the moments either.
        skip = not finite or (drawn is not None and found.norm == 0)
        take_update(run.optimizer, run.scaler, skip=skip)
        averaged = bool(run.average) and not skip and math.isfinite(found.norm)  # fp16 skips by itself where it is not
        if averaged:
            update_average(run, progress)
        progress = progress.after_step(finite, rewarded=drawn is not None, averaged=averaged)
        row = {
            "type": "train", "step": progress.step,
            "epoch": round(progress.epoch + progress.step_in_epoch / len(steps), 4), "loss": found.loss, **rates,
            "grad_norm": found.norm, "captions_per_s": round(found.captions / (time.perf_counter() - start), 1),
            "input_s": round(waited, 4), **(drawn.row() if drawn else {}), **contrastive.row(run, found.contrastive),
        }  # fmt: skip
        skipped = [] if finite else pictures_of_step(run, groups)
        try:
            write_row(run.log, row, run.copies)
            shown = f"reward {row['reward']:.3f}" if drawn else f"loss {row['loss']:.3f}"
            bar.set_postfix_str(f"{shown}, lr {rates['lr']:.1e}", refresh=False)
            bar.update(int(drawn.own) if drawn else found.captions)
            if not finite:
                report_nonfinite(run, progress, skipped, found, bar)
        finally:
            yield progress  # counted first: an error in telling of the step must not save it as not done


def update_average(run: Run, progress: Progress) -> None:
    """Take the step that was taken into the moving average. Raises HalfUpdate where that failed."""
    try:
        weights = parameters_by_name(run.optimizer)
        taken, rewarded = progress.averaged_steps, is_scst(run.settings, progress.epoch)
        average.update(run.average, weights, average.decay_at(run.settings.EMA_DECAY, taken, rewarded))
    except Exception as error:
        raise HalfUpdate(f"the update of the moving average failed: {error}") from error


def boundary(run: Run, progress: Progress, seconds_since_save: float) -> bool:
    """Between two steps: whether to save now, agreed by all ranks. Raises Stopped or SystemExit to end the run."""
    settings = run.settings
    minutes = settings.CHECKPOINT_EVERY_MINUTES
    if run.saver.failed:
        minutes = min(minutes or 1, 1)  # the disk may have room again
    asked, run.requests.save = run.requests.save, False
    by_step = settings.CHECKPOINT_EVERY_STEPS and progress.step % settings.CHECKPOINT_EVERY_STEPS == 0
    by_time = minutes and seconds_since_save > 60 * minutes
    stop, due = devices.max_(run.requests.stop, int(bool(asked or by_step or by_time)))
    tell_problem(run)
    check_sound(run, progress)
    if stop:
        raise signals.Stopped(stop)
    return bool(due)


@torch.no_grad()
def evaluate(run: Run) -> float:
    """The mean loss per token over the whole validation split, without label smoothing, in nats.

    Raises Stopped, on all ranks together, once a signal has asked for it.
    """
    settings = run.settings
    run.model.eval()
    groups = in_order([len(ids) for ids in run.val_set.token_ids])
    mine = groups[devices.rank() :: devices.world_size()]
    batches = packed(mine, settings.BATCH_SIZE)
    loader = iter(make_loader(run.val_set, batches, settings.NUM_WORKERS))
    objective = caption_objective()
    losses, tokens = [], 0
    (rounds,) = devices.max_(len(batches))  # ranks may differ by one batch, and must ask together
    for number in range(rounds):
        stop_if_asked(run)
        if number < len(batches):
            batch = next_batch(loader)
            with devices.autocast(run.device, devices.pick_dtype(settings.PRECISION, run.device)):
                losses.append(objective.total(run.model, batch.to(run.device, run.val_set.resident)))
            tokens += objective.number(batch)
    totals = torch.tensor([sum(loss.item() for loss in losses), tokens], dtype=torch.float64)
    loss, tokens = devices.sum_(totals.to(run.device if run.device.type == "cuda" else "cpu")).tolist()
    return loss / tokens


def finish_epoch(run: Run, progress: Progress, bar: tqdm) -> tuple[Progress, list[str]]:
    """Validate where it is time to; returns (progress with one more epoch, names for it as one of the best)."""
    settings = run.settings
    by_cider = is_scst(settings, progress.epoch)
    done = progress._replace(epoch=progress.epoch + 1, step_in_epoch=0)
    if by_cider and progress.epoch == settings.SCST_START_EPOCH:
        done = done._replace(validations_without_gain=0)  # so far it counted another gain
    if done.epoch != settings.NUM_EPOCHS and done.epoch % settings.VALIDATION_INTERVAL:
        return done, []
    seed_generators(seed_of(settings.SEED, "validation", done.epoch, devices.rank()))
    if settings.NUM_WORKERS:
        run.saver.wait()
    with average.in_place(run.average, parameters_by_name(run.optimizer)), sharding.gathered(run.model):
        val_loss, found = contrastive.validate(run) if trains_head(settings) else (math.nan, {})
        if settings.OBJECTIVE != "contrastive":
            val_loss = evaluate(run)
        scores, samples = score_validation(run) if devices.rank() == 0 else ({}, [])
        stop_if_asked(run)
    done, names = done.after_validation(val_loss, scores.get("CIDEr"), by_cider)
    place = {"step": done.step, "epoch": done.epoch}
    best = " (best)" * (done.validations_without_gain == 0)
    text = f"epoch {done.epoch}: validation loss {val_loss:.4f}{'' if by_cider else best}"
    if "accuracy" in scores:
        text += f", {scores['accuracy']:.1%} of {int(scores['asked'])} questions answered rightly (greedy, "
        text += f"{len(run.val_records)} images)"
    elif scores:
        text += f", CIDEr {100 * scores['CIDEr']:.1f}{best if by_cider else ''}, BLEU-4 {100 * scores['Bleu_4']:.1f}"
        text += f" (greedy, {len(run.val_records)} images)"
        text += "".join(f", true {k[5:]} {share:.0%}" for k, share in scores.items() if k.startswith("true_"))
    if scores:
        text += "".join(f"\n    {sample['file_name']}: {sample['caption']}" for sample in samples)
        write_row(run.log, {"type": "samples", **place, "samples": samples}, run.copies)
    if found:
        text += f"\n    by the head, {len(run.val_set):,} images: {told(found)}"
    write_row(run.log, {"type": "val", **place, "val_loss": val_loss, **scores, **found}, run.copies)
    if devices.rank() == 0:
        bar.write(text)
        if by_cider and (warning := scst.drift(log_rows(run.folder / "log.jsonl"))):
            bar.write(warning)
    return done, names


def score_validation(run: Run) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Greedy captions of some validation images: (their scores, three samples); empty where none are asked for."""
    if not run.val_records or run.settings.OBJECTIVE == "contrastive":  # whose captions stay as they are
        return {}, []
    if run.settings.QUESTIONS:
        return score_answers_of_validation(run)
    texts: list[str] = []
    broken = 0
    for captions in caption_batches(
        run.model, run.tokenizer, run.val_images, batch_size=run.settings.EVAL_BATCH_SIZE, options=GREEDY,
        device=run.device, precision=run.settings.PRECISION, workers=run.settings.NUM_WORKERS,
    ):  # fmt: skip
        texts += [found[0].text for found in captions]
        broken += sum(found[0].broken for found in captions)
        if run.requests.stop:
            return {}, []  # on this rank alone: the others wait at the next stop_if_asked
    scores, _ = score_captions(run.val_records, texts, people=False, broken=broken)
    truth = {f"true_{kind}": n["true"] / n["claims"] for kind, n in scores.get("truth", {}).items() if n["claims"]}
    samples = [
        {"file_name": record["file_name"], "caption": text}
        for record, text in zip(run.val_records[:3], texts[:3], strict=True)
    ]
    return scores["corpus"] | truth, samples


def score_answers_of_validation(run: Run) -> tuple[dict[str, float], list[dict[str, str]]]:
    """`score_validation` where questions are learnt: greedy answers to all questions of these images."""
    settings, questions = run.settings, [record["questions"] for record in run.val_records]
    asked = [[asking(question, settings.CAPTION_CASE) for question in own] for own in questions]
    texts: list[str] = []
    for answers in answer_batches(
        [run.model], run.tokenizer, run.val_images, asked, batch_size=settings.EVAL_BATCH_SIZE, options=GREEDY,
        device=run.device, precision=settings.PRECISION, workers=settings.NUM_WORKERS,
    ):  # fmt: skip
        texts += [found[0].text if found else "" for of_picture in answers for found in of_picture]
        if run.requests.stop:
            return {}, []
    flat = [question for own in questions for question in own]
    right = accuracy_of(flat, texts)
    firsts = [0, *itertools.accumulate(len(own) for own in questions[:2])]
    samples = [
        {"file_name": record["file_name"], "caption": f"{flat[place]['question']} {texts[place]}"}
        for record, place in zip(run.val_records[:3], firsts, strict=False)
    ]
    return {"accuracy": sum(right) / len(right), "asked": float(len(right))}, samples


def save(run: Run, progress: Progress, names: Sequence[str] = (), wait: bool = False) -> None:
    """Save the run as it is, also under `names`; beside the training, unless it should `wait`. All ranks together.

    Raises SystemExit where it waited in vain: what could not be saved would be lost.
    """
    run.saver.wait()
    tell_problem(run)
    state = take_state(run.model, run.optimizer, run.scaler, {**progress._asdict(), **run.about}, run.average)
    if devices.rank() == 0:
        run.saver.start(state, names)
    if wait:
        run.saver.wait()
        devices.barrier()  # or torchrun would end the first rank with the others
        if run.saver.failed:
            raise SystemExit(run.saver.problem())


def leave(run: Run, progress: Progress, error: Exception | SystemExit) -> NoReturn:
    """Save before a signal or an error ends the run, say how to go on, and raise what it ends with.

    With several processes an error may be of one of them, while the others wait elsewhere: then the last save counts.
    """
    stopped = isinstance(error, signals.Stopped)
    try:
        if stopped or devices.world_size() == 1:
            save(run, progress, wait=True)
            write_row(run.log, {"type": "stop", "step": progress.step, "reason": str(error)})
            go_on = f"python train.py --resume-checkpoint-path {shlex.quote(str(run.folder / LAST))}"
            said = f"{error} after step {progress.step}: saved." if stopped else f"Saved after step {progress.step}."
            devices.console(f"{said} Go on with: {go_on}")
    except SystemExit as unsaved:
        if stopped:
            raise
        devices.console(str(unsaved))  # and then the error itself
    if isinstance(error, signals.Stopped):
        raise SystemExit(128 + error.number) from None
    explanation = explain_fault(run, error)
    if explanation:
        raise SystemExit(explanation) from error
    raise error


def read_steps(
    run: Run, pictures: ImageTextDataset, steps: Sequence[list[list[Group]]]
) -> Iterator[tuple[list[Batch], float]]:
    """The micro-batches of one step after the other, and the seconds that the loop waited for them."""
    if run.settings.NUM_WORKERS:
        run.saver.wait()  # a process forked while a thread holds a lock would hold it for ever
    groups = flattened(steps)
    batches = iter(make_loader(pictures, groups, run.settings.NUM_WORKERS, run.device.type == "cuda"))
    deaf_to_children()
    for step in steps:
        start = time.perf_counter()
        yield [next_batch(batches) for _ in step], time.perf_counter() - start


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next batch; an error in a process that reads pictures is told as if it had been read here."""
    try:
        return next(batches)
    except (ConnectionError, EOFError) as error:  # what is seen of a dead one, if not torch's own word for it
        raise RuntimeError(f"DataLoader worker died: {error}") from error
    except ValueError as error:
        raise ValueError(cli.told(error)) from error


def stop_if_asked(run: Run) -> None:
    """Raise Stopped on all ranks together once one of them has a signal to stop."""
    (stop,) = devices.max_(run.requests.stop)
    if stop:
        raise signals.Stopped(stop)


def out_of_patience(run: Run, progress: Progress) -> bool:
    patience = run.settings.EARLY_STOPPING_PATIENCE
    if run.settings.OBJECTIVE == "scst" and progress.epoch <= run.settings.SCST_START_EPOCH:
        return False  # the self-critical phase is still to come
    if not patience or progress.validations_without_gain < patience:
        return False
    what = "CIDEr" if run.settings.OBJECTIVE == "scst" else "loss"
    devices.console(f"Stopping early: no better {what} in EARLY_STOPPING_PATIENCE = {patience} validations; a larger "
                    "one goes on.")  # fmt: skip
    return True


def progress_bar(run: Run, progress: Progress) -> tqdm:
    """Over the captions of all epochs, those that are done included."""
    captions = round(sum(map(operator.mul, caption_counts(run.train_set), run.train_set.weights)))
    done = whole_steps(run.settings, run.train_set, progress.epoch)[: progress.step_in_epoch]
    in_epoch = sum(map(number_of_captions, done))
    return tqdm(
        total=captions * run.settings.NUM_EPOCHS, initial=captions * progress.epoch + in_epoch, unit="caption",
        smoothing=0.05, mininterval=0.5 if sys.stderr.isatty() else 20, dynamic_ncols=True,
        disable=devices.rank() != 0 or progress.epoch >= run.settings.NUM_EPOCHS,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main, "Stopped while nothing was being trained.")
