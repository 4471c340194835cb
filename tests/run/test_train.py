"""The training loop: what it learns, that it repeats itself, resumes exactly, and refuses what is wrong."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train
from nanocaption.base import tower_names
from nanocaption.base.settings import load_settings
from nanocaption.data.loader import make_loader
from nanocaption.data.order import epoch_groups, in_order
from nanocaption.data.prepared import load_records
from nanocaption.prepare.make import prepare
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import BEST_CIDER, LAST, best_files
from nanocaption.runs.resume import Start
from nanocaption.score.scoring import score_captions
from nanocaption.train import losses as objectives
from nanocaption.train import profile
from nanocaption.train.losses import LossInParts, caption_loss, caption_objective
from nanocaption.train.setup import make_plan
from nanocaption.train.step import accumulate_gradients, read_found
from nanocaption.use.load import load_model
from tests.conftest import CUTOFF, ROOT, TINY_RUN, save_tower, tiny_flags
from tests.processes import end, fork, losses, rows

NO_SCORES = ["--validation-score-images", "0", "--data-cutoff", "4"]  # one step an epoch, where the steps do not matter


def only_run(output: Path) -> Path:
    (run,) = output.iterdir()
    return run


def test_the_same_seed_gives_the_same_loss_curve_for_any_number_of_workers(flags, tmp_path, tiny_run):
    for name, more in (("b", ["--num-workers", "2"]), ("other", ["--seed", "2", "--num-epochs", "1"])):
        train.main([*flags, *TINY_RUN.split(), "--run-name", name, *more])
    runs = tmp_path / "runs"
    assert len(losses(runs / "b")) == 14  # 24 images in steps of 4, 2 epochs, 2 validations
    assert losses(tiny_run) == losses(runs / "b")
    assert losses(tiny_run)[:6] != losses(runs / "other")[:6]


def fingerprint(run: Path) -> str:
    """Of the weights and moments of its last checkpoint."""
    tensors, _ = checkpoint._pack(checkpoint.load(run / LAST))
    return checkpoint._digest(tensors, "")


def resume_copy(run: Path, name: str, epoch: int) -> Path:
    """A new run folder that holds only `run`'s best checkpoint of `epoch`."""
    folder = run.parent / name
    folder.mkdir()
    (source,) = run.glob(f"checkpoint_epoch_{epoch}_*")
    shutil.copyfile(source, folder / source.name)
    return folder / source.name


def test_resumed_from_the_best_checkpoint_equals_uninterrupted_to_the_bit(tiny_run):
    resumed = resume_copy(tiny_run, "resumed", 1)
    train.main(["--resume-checkpoint-path", str(resumed)])  # none of the run's own flags: they are in the checkpoint
    assert losses(resumed.parent) == losses(tiny_run)[6:12] + losses(tiny_run)[13:]
    a, b = (checkpoint.load(run / "last.safetensors") for run in (tiny_run, resumed.parent))
    assert a["epoch"] == b["epoch"] == 2
    for name, tensor in a["model_state_dict"].items():
        assert torch.equal(tensor, b["model_state_dict"][name]), name
    for name, slots in a["optimizer_state_dict"]["state"].items():
        for slot, tensor in slots.items():
            assert torch.equal(tensor, b["optimizer_state_dict"]["state"][name][slot]), (name, slot)


def test_an_error_in_telling_of_a_step_does_not_save_it_as_undone(flags, tmp_path, monkeypatch, tiny_run):
    """E.g. the reader of the progress bar's pipe has gone: the step has changed the weights."""
    args = [*flags, *TINY_RUN.split(), "--run-name", "torn"]
    with monkeypatch.context() as patch:
        patch.setattr(train.tqdm, "set_postfix_str", lambda bar, *_, **__: broken(bar) if bar.n == 40 else None)
        with pytest.raises(BrokenPipeError):
            train.main(args)
    last = tmp_path / "runs" / "torn" / "last.safetensors"
    saved = checkpoint.load(last)
    assert {slots["step"].item() for slots in saved["optimizer_state_dict"]["state"].values()} == {saved["step"]} == {3}
    train.main([*args, "--resume-checkpoint-path", str(last)])
    assert losses(last.parent) == losses(tiny_run)


def broken(_: Any) -> None:
    raise BrokenPipeError(32, "Broken pipe")


def test_a_warmup_share_stays_that_of_the_start_when_epochs_are_added(flags, tmp_path):
    args = [*flags, "--lr-schedule", "constant", "--warmup-ratio", "0.5", "--validation-score-images", "0"]
    train.main([*args, "--num-epochs", "1", "--run-name", "a"])
    last = tmp_path / "runs" / "a" / "last.safetensors"
    train.main([*args, "--num-epochs", "2", "--resume-checkpoint-path", str(last)])
    rates = [row["lr"] for row in rows(last.parent, "train")]
    assert rates[3:] == [3e-3] * 9 and rates[0] < rates[1] < rates[2] < 3e-3


def test_last_resumes_the_newest_run_and_more_epochs_continue_it(flags, tmp_path):
    flags += ["--lr-schedule", "constant", "--validation-score-images", "0"]
    train.main([*flags, "--num-epochs", "1"])
    train.main([*flags, "--num-epochs", "2", "--resume-checkpoint-path", "last"])
    run = only_run(tmp_path / "runs")
    assert [row["epoch"] for row in rows(run, "val")] == [1, 2]
    assert len(rows(run, "resume")) == 1
    train.main([*flags, "--num-epochs", "2", "--run-name", "whole"])
    assert losses(run) == losses(tmp_path / "runs" / "whole")


@pytest.fixture(scope="module")
def learned(demo_data, tmp_path_factory) -> Path:
    """A run that has learnt something, with its curves drawn; to be read only."""
    output = tmp_path_factory.mktemp("learned")
    train.main([*tiny_flags(demo_data, output), "--num-epochs", "6", "--learning-rate", "1e-2"])
    return only_run(output)


def test_it_learns_draws_curves_and_the_best_checkpoint_is_the_lowest_loss(learned):
    history = [row["val_loss"] for row in rows(learned, "val")]
    assert history[-1] < history[0] - 1
    best = best_files(learned)
    assert len(best) == 2  # KEEP_BEST
    assert f"{min(history):.4f}" in best[0].name
    assert checkpoint.load(best[0])["best_val_loss"] == min(history)
    ciders = [row["CIDEr"] for row in rows(learned, "val")]
    assert checkpoint.load(learned / BEST_CIDER)["epoch"] == 1 + ciders.index(max(ciders))
    assert (learned / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_fresh_run_can_start_from_weights_and_their_tokenizer_and_resumes(flags, tmp_path, learned):
    (best, *_) = best_files(learned)
    args = [*flags, "--vocab-size", "300", "--validation-score-images", "0", "--init-checkpoint-path", str(best)]
    train.main([*args, "--num-epochs", "1", "--run-name", "second"])
    second = tmp_path / "runs" / "second"
    first_row = rows(second, "train")[0]
    assert first_row["step"] == 1 and first_row["loss"] < rows(learned, "train")[0]["loss"] - 1
    last = second / "last.safetensors"
    assert checkpoint.load(best)["tokenizer"] == checkpoint.load(last)["tokenizer"]
    with pytest.raises(ValueError, match="is another model: DECODER_EMBED_DIM: 32 -> 16"):
        train.main([*args, "--decoder-embed-dim", "16", "--run-name", "third"])
    assert not (tmp_path / "runs" / "third").exists()
    train.main(["--resume-checkpoint-path", str(last), "--num-epochs", "2"])
    assert checkpoint.load(last)["epoch"] == 2


def test_an_early_stopped_run_stays_stopped(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda run: 1.0)
    flags += ["--num-epochs", "9", "--early-stopping-patience", "1", *NO_SCORES]
    train.main(flags)
    train.main([*flags, "--resume-checkpoint-path", "last"])
    assert [row["epoch"] for row in rows(only_run(tmp_path / "runs"), "val")] == [1, 2]


def test_one_caption_per_picture_still_fills_the_batch(tiny):
    tiny.train_set.token_ids = [captions[:1] for captions in tiny.train_set.token_ids]
    steps = train.steps_of_epoch(tiny.settings, tiny.train_set, 0)
    assert [sum(len(captions) for batch in step for _, captions in batch) for step in steps] == [20, 4]


def test_a_resume_refuses_what_would_make_it_another_run(flags, tiny_run):
    with pytest.raises(SystemExit) as error:
        train.main([*flags, "--resume-checkpoint-path", "last", "--weight-decay", "0.3", "--batch-size", "40"])
    assert "WEIGHT_DECAY: 0.05 -> 0.3" in str(error.value)
    assert "20 x 1 x 1 -> 40 x 1 x 1" in str(error.value)


@pytest.fixture
def edited(tmp_path, demo_data) -> Path:
    """A copy of the data, in which some captions say "bush" where they said "tree", with a manifest that fits."""
    other = Path(shutil.copytree(demo_data, tmp_path / "other"))
    captions, manifest = other / "demo" / "captions.json", other / "demo" / "manifest.json"
    captions.write_text(captions.read_text().replace("tree", "bush"))
    content = json.loads(manifest.read_text())
    content["captions_sha256"] = hashlib.sha256(captions.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))
    return other


def test_a_resume_refuses_other_captions_and_names_them(flags, edited, tiny_run):
    with pytest.raises(SystemExit, match=r"scene_\d+.jpg: caption \d is '[^']*bush"):
        train.main([*flags, "--data-dir", str(edited), "--resume-checkpoint-path", "last", "--num-epochs", "3"])


def test_a_run_of_before_goes_by_the_whole_file(flags, edited, tiny_run):
    for path in tiny_run.glob("*.safetensors"):
        state = checkpoint.load(path)
        del state["used"]
        checkpoint.save(path, state)
    with pytest.raises(SystemExit, match="needs the same data"):
        train.main([*flags, "--data-dir", str(edited), "--resume-checkpoint-path", "last", "--num-epochs", "3"])
    train.main([*flags, "--resume-checkpoint-path", "last", "--num-epochs", "3"])
    assert "used" not in checkpoint.load(tiny_run / LAST)


def test_a_larger_cutoff_touches_no_run_that_was_begun_with_a_smaller_one(flags, tmp_path, tiny_run):
    """The set is made again with more pictures; the run goes on with the first 24 of each split, which are its own."""
    argv = [*flags, "--resume-checkpoint-path"]
    source = resume_copy(tiny_run, "more", 1)
    more = tmp_path / "more_data"
    prepare("demo", more, seed=1, cutoff=CUTOFF + 6)
    train.main([*argv, str(source), "--data-dir", str(more)])
    assert fingerprint(source.parent) == fingerprint(tiny_run)


def test_a_fresh_run_never_takes_another_runs_folder(flags, tmp_path):
    for _ in range(2):
        train.main([*flags, "--num-epochs", "1", *NO_SCORES])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo-001", "demo-002"]
    with pytest.raises(SystemExit, match="holds a run"):
        train.main([*flags, "--run-name", "demo-001"])


def test_validation_follows_its_interval_and_always_the_last_epoch(flags, tmp_path):
    train.main([*flags, "--num-epochs", "3", "--validation-interval", "2", *NO_SCORES])
    assert [row["epoch"] for row in rows(only_run(tmp_path / "runs"), "val")] == [2, 3]


def test_patience_stops_the_run(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda run: 1.0)  # the first is the best, the others no better
    train.main([*flags, "--num-epochs", "9", "--early-stopping-patience", "2", *NO_SCORES])
    assert [row["epoch"] for row in rows(only_run(tmp_path / "runs"), "val")] == [1, 2, 3]


def test_a_nan_validation_loss_is_never_the_best(flags, tmp_path, monkeypatch):
    values = iter([math.nan, 2.0, math.nan])
    monkeypatch.setattr(train, "evaluate", lambda run: next(values))
    train.main([*flags, "--num-epochs", "3", *NO_SCORES])
    (best,) = best_files(only_run(tmp_path / "runs"))
    assert best.name == "checkpoint_epoch_2_val_loss_2.0000.safetensors"


def spoil(monkeypatch, steps: set[int]):
    """Make the loss of some steps NaN; returns the weights that each step started with."""
    real, weights = caption_loss, []

    def spoiled(model, batch, smoothing=0.0):
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return real(model, batch, smoothing) * (math.nan if len(weights) in steps else 1.0)

    monkeypatch.setattr(objectives, "caption_loss", spoiled)
    return weights


def same_weights(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_that_is_not_finite_never_reaches_the_weights_and_names_its_pictures(flags, tmp_path, monkeypatch):
    weights = spoil(monkeypatch, {3})
    train.main([*flags, "--num-epochs", "1", "--validation-score-images", "0", "--max-nonfinite-steps", "2"])
    assert same_weights(weights[2], weights[3]) and not same_weights(weights[1], weights[2])
    run = only_run(tmp_path / "runs")
    (row,) = rows(run, "nonfinite")
    assert row["step"] == 3 and row["loss"] == "nan" and len(row["images"]) == 4
    groups = epoch_groups([5] * 24, 5, 1, 0)[8:12]
    records = load_records(load_settings(flags).DATA_DIR + "/demo", "train", 24)
    assert row["images"] == [records[image]["file_name"] for image, _ in groups]
    assert checkpoint.load(run / LAST)["nonfinite_in_a_row"] == 0


def test_steps_that_are_not_finite_in_a_row_stop_the_run_with_sound_weights(flags, tmp_path, monkeypatch):
    weights = spoil(monkeypatch, {2, 4, 5})
    with pytest.raises(SystemExit, match="Step 5: .* MAX_NONFINITE_STEPS = 2 steps in a row, all skipped. Begin a"):
        train.main([*flags, "--num-epochs", "1", "--max-nonfinite-steps", "2"])
    run = only_run(tmp_path / "runs")
    assert [row["step"] for row in rows(run, "nonfinite")] == [2, 4, 5]
    saved = checkpoint.load(run / LAST)
    assert (saved["step"], saved["step_in_epoch"], saved["nonfinite_in_a_row"]) == (5, 5, 2)
    names = set(weights[0])
    assert same_weights({n: t for n, t in saved["model_state_dict"].items() if n in names}, weights[4])


@pytest.fixture
def tiny(flags, demo_data, tmp_path):
    """A prepared, untrained miniature."""
    settings = load_settings(flags)
    (tmp_path / "run").mkdir()
    run, _ = train.prepare(Start(settings), tmp_path / "run", torch.device("cpu"), train.signals.Requests())
    with run.log:
        yield run


def test_the_loss_is_the_mean_over_real_tokens_of_the_whole_split(tiny):
    """Against a loop over single captions that knows neither padding nor batches."""
    tiny.model.eval()
    total, count = 0.0, 0
    for image, captions in enumerate(tiny.val_set.token_ids):
        pixels, _ = tiny.val_set[(image, ())]
        for ids in captions:
            tokens = torch.as_tensor(ids, dtype=torch.long)
            logits = tiny.model(torch.tensor(pixels)[None], tokens[None, :-1])[0]
            total += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
            count += len(ids) - 1
    assert train.evaluate(tiny) == pytest.approx(total / count, rel=1e-5)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tiny):
    tiny.model.eval().double()  # no dropout
    groups = in_order([5] * 8)

    def gradients(batches) -> dict[str, torch.Tensor]:
        loader = make_loader(tiny.train_set, batches, 0)
        tiny.model.zero_grad()
        found = read_found(accumulate_gradients(tiny, caption_objective(), list(loader)))
        assert found.captions == 40
        return {name: p.grad.clone() for name, p in tiny.model.named_parameters()}, found.loss

    whole, whole_loss = gradients([groups])
    parts, parts_loss = gradients([groups[:1], groups[1:6], groups[6:]])  # of unequal size
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-9)


def test_label_smoothing_and_padding_agree_with_the_library(tiny):
    tiny.model.eval()
    batch = next(iter(make_loader(tiny.train_set, [in_order([5] * 3)], 0)))
    logits = tiny.model(batch.images, batch.decoder_input_tokens, batch.image_index)
    expected = F.cross_entropy(
        logits.flatten(0, 1), batch.target_tokens.flatten(), ignore_index=0, label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(caption_loss(tiny.model, batch, 0.1), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 64, 150])
def test_the_loss_in_parts_is_the_librarys_with_its_gradients(smoothing, rows, monkeypatch):
    monkeypatch.setattr("nanocaption.train.losses._PART", 1)  # 64 rows at a time
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in (rows, 11))
    targets = torch.randint(11, (rows,), generator=generator)

    def found(loss_of):
        own = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        loss = loss_of(*own)
        (3 * loss).backward()  # as a loss scale, or the number of tokens, multiplies it
        return loss.detach(), *(tensor.grad for tensor in own)

    def plain(hidden, weight):
        return F.cross_entropy(hidden @ weight.T, targets, reduction="sum", label_smoothing=smoothing)

    ours = found(lambda hidden, weight: LossInParts.apply(hidden, weight, targets, smoothing))
    for own, theirs in zip(ours, found(plain), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-10, atol=1e-12)
    other = found(lambda hidden, weight: LossInParts.apply(hidden, weight, targets, smoothing + 0.1))
    assert not torch.allclose(other[1], ours[1], rtol=1e-3)


def test_training_takes_the_loss_in_parts_and_validation_the_plain_one(tiny):
    batch = next(iter(make_loader(tiny.train_set, [in_order([5] * 3)], 0)))
    tiny.model.eval()
    parts = caption_loss(tiny.model, batch)
    with torch.no_grad():
        whole = caption_loss(tiny.model, batch)
    assert "LossInParts" in type(parts.grad_fn).__name__
    torch.testing.assert_close(parts.detach(), whole)


def frozen(flags: list[str], tower: Path, *more: str) -> list[str]:
    return [*flags, "--num-epochs", "1", "--validation-score-images", "0", "--freeze-encoder", "--image-size", "none",
            "--encoder-model-name", str(tower), *more]  # fmt: skip


def test_a_frozen_encoder_stays_as_it_is_and_its_cache_changes_nothing(flags, demo_data, tmp_path):
    folder = tmp_path / "vit"
    tower = save_tower(folder)
    cached, live = tmp_path / "runs" / "cached", tmp_path / "runs" / "live"
    train.main(frozen(flags, folder, "--run-name", "cached"))
    train.main(frozen(flags, folder, "--run-name", "live", "--no-cache-features"))
    assert losses(cached) == pytest.approx(losses(live), rel=1e-3)  # the cache is float16
    trained = checkpoint.load(live / "last.safetensors")["model_state_dict"]
    whole = tower_names.as_filed({f"encoder.tower.{name}": tensor for name, tensor in tower.state_dict().items()})
    for name, tensor in whole.items():
        assert torch.equal(trained[name], tensor)
    shutil.rmtree(folder)  # the checkpoint is enough to caption
    model, tokenizer = load_model(checkpoint.load(live / "last.safetensors"), torch.device("cpu"))
    assert model.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 17, 16)


def test_kept_features_go_by_the_tower_and_not_by_where_it_lies(flags, demo_data, tmp_path):
    """Its weights and its config.json: the same weights with other heads and activations are another tower."""

    def features(tower: Path) -> set[Path]:
        settings = load_settings(frozen(flags, tower))
        (tmp_path / tower.name).mkdir(exist_ok=True)
        run, _ = train.prepare(Start(settings), tmp_path / tower.name, torch.device("cpu"), train.signals.Requests())
        run.log.close()
        return set((demo_data / "demo" / "cache").glob("features_*"))

    folder = tmp_path / "vit"
    save_tower(folder)
    kept = features(folder)
    assert kept and features(Path(shutil.copytree(folder, tmp_path / "elsewhere"))) == kept
    about = json.loads((folder / "config.json").read_text()) | {"hidden_act": "relu", "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(about))
    assert features(folder) > kept


def test_separate_learning_rates_reach_their_parameters(tiny):
    settings = load_settings([]).on(dict(tiny.settings.values) | {"ENCODER_LEARNING_RATE": 3e-4})
    seen = {}
    run = dataclasses.replace(tiny, settings=settings, plan=make_plan(settings, tiny.train_set, None))
    for _ in train.train_one_epoch(run, train.Progress(step=2), train.tqdm(disable=True)):
        pass
    for group in run.optimizer.param_groups:
        seen.setdefault(group["part"], set()).add(group["lr"])
    (decoder,), (encoder,) = seen["decoder"], seen["encoder"]
    assert encoder == pytest.approx(decoder / 10)  # 3e-4 to 3e-3


def test_torchrun_starts_ranks_that_train_as_one(flags, tmp_path):
    """The same global batches: 2 x 10 captions against 20. Torchrun's own agent, with ranks that are forked."""
    args = [*flags, "--num-epochs", "1", "--data-cutoff", "8"]
    train.main([*args, "--run-name", "one"])

    def torchrun() -> None:
        how = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", rdzv_backend="c10d",
                           rdzv_endpoint="localhost:0", run_id="test", monitor_interval=0.05)  # fmt: skip
        elastic_launch(how, train.main)([*args, "--batch-size", "10", "--run-name", "two"])

    assert end(fork(torchrun, tmp_path / "printed", tmp_path / "printed")) == 0, (tmp_path / "printed").read_text()
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert rows(two, "val")[0]["CIDEr"] == pytest.approx(rows(one, "val")[0]["CIDEr"], abs=0.2)


@pytest.mark.long
def test_the_command_torchrun_trains(flags, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py"), *flags]
    done = subprocess.run(
        [*command, "--num-epochs", "1", "--batch-size", "10"], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(rows(only_run(tmp_path / "runs"), "train")) == 6


def test_half_precision_on_the_cpu_trains(flags, tmp_path):
    train.main([*flags, "--num-epochs", "2", "--precision", "bf16", "--validation-score-images", "0"])
    history = losses(only_run(tmp_path / "runs"))
    assert history[11] < history[0] and all(map(math.isfinite, history))


def test_a_run_with_auto_prints_and_keeps_the_number(flags, tmp_path, capsys):
    train.main([*flags, "--num-epochs", "1", "--batch-size", "auto", "--run-name", "a"])
    assert "BATCH_SIZE = 'auto': " in capsys.readouterr().out
    saved = checkpoint.load(tmp_path / "runs" / "a" / "last.safetensors")
    number = saved["config"]["BATCH_SIZE"]
    assert isinstance(number, int) and number >= 5
    train.main([*flags, "--num-epochs", "1", "--batch-size", str(number), "--run-name", "b"])
    assert losses(tmp_path / "runs" / "a") == losses(tmp_path / "runs" / "b")
    train.main([*flags, "--num-epochs", "2", "--batch-size", "auto", "--resume-checkpoint-path",
                str(tmp_path / "runs" / "a" / "last.safetensors")])  # fmt: skip


def test_the_profile_trains_nothing_and_its_parts_are_the_step(flags, tmp_path, capsys):
    train.main([*flags, "--profile", "--data-cutoff", "20"])  # 5 steps an epoch: 4 to warm up and one more
    printed = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    for part in profile.PARTS:
        assert f"  {part}" in printed
    assert "captions/s" in printed and "MFU" in printed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--resume-checkpoint-path", "nowhere.safetensors"], "no such file"),
        (["--encoder-model-name", "./no-such-folder"], "there is no such folder"),
        (["--encoder-model-name", "no-such/model"], "cannot be loaded"),
        (["--device", "cuda:7"], "CUDA device"),
        (["--dataset", "mine"], "RAW_DATA_DIR"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(flags, tmp_path, wrong, message):
    with pytest.raises((SystemExit, ValueError), match=message) as error:
        train.main([*flags, *wrong])
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "runs").glob("*"))


def test_scores_of_the_references_themselves_are_perfect_and_true(demo_data):
    records = load_records(demo_data / "demo", "val")
    scores, per_image = score_captions(records, [record["captions"][1] for record in records])
    assert scores["corpus"]["Bleu_4"] == pytest.approx(1.0)
    assert scores["corpus"]["CIDEr"] > scores["leave_one_out"]["CIDEr"]
    assert len(per_image) == len(records)
    assert all(count["true"] == count["claims"] > 0 for count in scores["truth"].values())
    wrong, _ = score_captions(records, [record["captions"][1] for record in records[1:] + records[:1]])
    assert wrong["truth"]["things"]["true"] < wrong["truth"]["things"]["claims"]
    assert wrong["corpus"]["CIDEr"] < scores["corpus"]["CIDEr"] / 2
