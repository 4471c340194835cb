"""What holds on a CUDA device: each check trains something tiny there, and raises where a promise is broken.

benchmarks/gpu.py runs each in a process of its own, tests/gpu runs them with pytest. Most of them run on the CPU as
well, which shows that the check itself is right; those of ONLY_CUDA have nothing to look at there.
"""

import contextlib
import dataclasses
import gc
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nanocaption  # noqa: E402
import train  # noqa: E402
from benchmarks import table  # noqa: E402
from nanocaption.base import devices  # noqa: E402
from nanocaption.base.files import read_log  # noqa: E402
from nanocaption.base.settings import load_settings  # noqa: E402
from nanocaption.data import inputs  # noqa: E402
from nanocaption.prepare.make import prepare as prepare_data  # noqa: E402
from nanocaption.runs import checkpoint, signals  # noqa: E402
from nanocaption.runs.folder import LAST  # noqa: E402
from nanocaption.runs.resume import Start  # noqa: E402
from nanocaption.train import batch_size, sharding  # noqa: E402
from nanocaption.train.objective import begin_objective, ready  # noqa: E402
from nanocaption.train.optim import build_optimizer, set_learning_rates  # noqa: E402
from nanocaption.train.setup import Progress, Run, prepare  # noqa: E402
from nanocaption.train.state import seed_generators  # noqa: E402
from nanocaption.train.step import accumulate_gradients, read_found, take_update  # noqa: E402
from nanocaption.train.steps import steps_of_epoch  # noqa: E402

PICTURES = 40  # of each split of the demo set
SIZES = """
    --vit-layers 1 --vit-embed-dim 32 --vit-heads 2 --image-size 32 --decoder-layers 1 --decoder-embed-dim 32
    --decoder-heads 2 --decoder-ff-dim 64 --vocab-size 320 --batch-size 40 --warmup-steps 2 --max-seq-len 24
    --validation-score-images 8 --learning-rate 3e-3 --num-epochs 2
    """


class Site(NamedTuple):
    """Where a check works."""

    place: Path  # an empty folder
    data: Path  # a DATA_DIR with the demo set's first PICTURES
    device: torch.device


def make_data(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_data("demo", folder, seed=1, cutoff=PICTURES)


def flags(site: Site, *more: str, name: str = "run") -> list[str]:
    places = ["--data-dir", str(site.data), "--output-dir", str(site.place), "--run-name", name]
    return [*places, "--data-cutoff", str(PICTURES), "--device", site.device.type, *SIZES.split(), *more]


def trained(site: Site, *more: str, name: str = "run") -> Path:
    """The folder of a run of two epochs with these flags besides."""
    train.main(flags(site, *more, name=name))
    return site.place / name


def started(site: Site, *more: str, name: str = "run") -> Run:
    """A run as train.main makes it ready, before its first step."""
    (site.place / name).mkdir()
    settings = load_settings(flags(site, *more, name=name))
    run, _ = prepare(Start(settings), site.place / name, site.device, signals.Requests())
    if run.log:
        run.log.close()
    return dataclasses.replace(run, log=None)


def take_a_step(run: Run, number: int = 0) -> float:
    """Train step `number` of the first epoch; its loss."""
    groups = steps_of_epoch(run.settings, run.train_set, epoch=0)[number]
    pictures, place = run.train_set.at_epoch(0), Progress(step=number, step_in_epoch=number)
    reading = train.make_loader(pictures, groups, 0, run.device.type == "cuda")
    run.model.train()
    seed_generators(number)
    set_learning_rates(run.optimizer, 1e-3, 1.0)
    batches, _ = ready(run, place, list(reading), groups, pictures.resident)
    found = read_found(accumulate_gradients(run, begin_objective(run, place), batches, pictures.resident))
    take_update(run.optimizer, run.scaler, skip=not found.finite(run.scaler.is_enabled()))
    return found.loss


def log(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_log(run / "log.jsonl") if row["type"] == kind]


def course(run: Path, after: int = 0) -> list[float]:
    """Loss and gradient norm of each step after `after`, then each validation's loss and CIDEr."""
    steps = [value for row in log(run, "train") if row["step"] > after for value in (row["loss"], row["grad_norm"])]
    return steps + [row[key] for row in log(run, "val") if row["step"] > after for key in ("val_loss", "CIDEr")]


def must(holds: bool, told: str) -> None:
    if not holds:
        raise AssertionError(told)


def must_have_the_same_bits(a: Path, b: Path) -> None:
    """Raise AssertionError, naming it, where two checkpoints differ in a tensor of the model or of its optimizer."""
    states = [checkpoint.load(path) for path in (a, b)]
    every: list[dict[str, Tensor]] = []
    for state in states:
        slots = {f"{slot} of {name}": tensor for name, own in state["optimizer_state_dict"]["state"].items()
                 for slot, tensor in own.items()}  # fmt: skip
        every.append({**state["model_state_dict"], **state.get("raw_state_dict", {}), **slots})
    must(every[0].keys() == every[1].keys(), "the two checkpoints hold other tensors")
    other = [name for name, tensor in every[0].items() if not torch.equal(tensor, every[1][name])]
    must(not other, f"{len(other)} of {len(every[0])} tensors differ, e.g. {other[:1]}")
    must(states[0]["step"] == states[1]["step"], "other steps")


def resumed(run: Path, name: str, step: int) -> Path:
    """The folder of a run that goes on from the checkpoint that `run` had after `step`."""
    folder = run.parent / name
    folder.mkdir()
    (source,) = [path for path in run.glob("*.safetensors") if checkpoint.read_header(path)["step"] == step
                 and path.name.startswith("checkpoint_epoch")]  # fmt: skip
    shutil.copyfile(source, folder / source.name)
    train.main(["--resume-checkpoint-path", str(folder / source.name)])
    return folder


# --- The checks ---


def trains(site: Site) -> str:
    """A captioner learns, is scored while it does, and says on which device it was."""
    run = trained(site, "--num-epochs", "8", "--learning-rate", "1e-2")
    losses = [row["loss"] for row in log(run, "train")]
    must(losses[-1] < 0.8 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} only")
    must(all("CIDEr" in row for row in log(run, "val")), "a validation was not scored")
    told = checkpoint.load(run / LAST)["environment"]
    named = torch.cuda.get_device_name(site.device) if site.device.type == "cuda" else "cpu"
    must(told["device"] == named, f"the checkpoint says it was trained on {told['device']}")
    return f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {len(losses)} steps, {told['precision']}"


def resumes(site: Site) -> str:
    """DETERMINISTIC: a resumed run has the bits of the uninterrupted one; dropout, left-out patches and average as
    well; another seed has others."""
    more = ["--deterministic", "--decoder-dropout", "0.2", "--patch-drop", "0.5", "--ema-decay", "0.9",
            "--keep-best", "3"]  # fmt: skip
    whole = trained(site, *more)
    half = log(whole, "val")[0]["step"]
    rest = resumed(whole, "resumed", half)
    must(course(rest, half) == course(whole, half), "the resumed run took other steps")
    must_have_the_same_bits(whole / LAST, rest / LAST)
    again = trained(site, *more, name="again")
    must_have_the_same_bits(whole / LAST, again / LAST)
    other = trained(site, *more, "--seed", "2", name="other")
    must(course(other) != course(whole), "another seed gave the same course: the comparison sees nothing")
    return f"{len(course(rest, half))} numbers of the log and every tensor, after step {half} and from the start"


def rewards(site: Site) -> str:
    """Self-critical training, decoded on the device, rewarded on the CPU, repeats itself to the bit."""
    first = trained(site, "--num-epochs", "4", name="first")
    more = ["--deterministic", "--objective", "scst", "--init-checkpoint-path", str(first / LAST), "--num-epochs", "1",
            "--scst-xe-weight", "0.2", "--scst-learning-rate", "1e-3"]  # fmt: skip
    runs = [trained(site, *more, name=name) for name in ("a", "b")]
    must(course(runs[0]) == course(runs[1]), "two equal runs took other steps")
    rows = log(runs[0], "train")
    must(all(math.isfinite(row["reward"]) and row["entropy"] > 0 for row in rows), "a reward is no number")
    must_have_the_same_bits(runs[0] / LAST, runs[1] / LAST)
    return f"{len(rows)} steps twice, reward {rows[-1]['reward']:.3f}"


def precisions(site: Site) -> str:
    """fp16 with its loss scale, bf16 and tf32 train as fp32 does, up to their rounding."""
    finals, told = {}, []
    for kind in ("fp32", "tf32", "bf16", "fp16"):
        run = trained(site, "--precision", kind, "--num-epochs", "4", name=kind)
        finals[kind] = log(run, "val")[-1]["val_loss"]
        state = checkpoint.load(run / LAST)
        must(state["environment"]["precision"] == {"tf32": "fp32"}.get(kind, kind).replace("fp", "float")
             .replace("bf16", "bfloat16"), f"{kind} ran as {state['environment']['precision']}")  # fmt: skip
        scale = state["scaler_state_dict"].get("scale", 0)
        must((scale > 1) == (kind == "fp16"), f"{kind} has the loss scale {scale}")
        must(not log(run, "nonfinite") or kind == "fp16", f"{kind} had steps that are not finite")
        told.append(f"{kind} {finals[kind]:.4f}")
    worst = max(abs(value / finals["fp32"] - 1) for value in finals.values())
    must(worst < 0.05, f"the losses are too far apart: {', '.join(told)}")
    must(finals["fp32"] != finals["bf16"], "bf16 gave the very numbers of fp32")
    return f"validation loss after 4 epochs: {', '.join(told)}"


def workers(site: Site) -> str:
    """Pictures read by processes, and pinned, give the bits of those read here."""
    more = ["--deterministic", "--random-flip", "--random-crop-area", "0.8"]
    runs = [trained(site, *more, "--num-workers", str(number), name=f"workers{number}") for number in (0, 2)]
    must(course(runs[0]) == course(runs[1]), "the two courses differ")
    return "0 and 2 processes, pictures cropped and mirrored"


def captions(site: Site) -> str:
    """A model loaded onto the device captions as on the CPU; a seed draws the same there whatever else is in the
    batch."""
    run = trained(site, "--num-epochs", "8", "--learning-rate", "1e-2", "--precision", "fp32")
    pictures = sorted((site.data / "demo" / "images").iterdir())[:20]
    here, there = (nanocaption.load(run / LAST, device=device) for device in ("cpu", site.device))
    for options in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2,
                    "diversity_penalty": 0.5, "num_return_sequences": 2}):  # fmt: skip
        both = [model.captions(pictures, **options) for model in (here, there)]
        same = sum(a[0].text == b[0].text for a, b in zip(*both, strict=True))
        must(same >= 18, f"{20 - same} of 20 captions differ from the CPU's with {options}")
    drawn = {"do_sample": True, "seed": 3, "num_return_sequences": 2}
    whole, alone = there.captions(pictures, **drawn), there.captions(pictures[:1], **drawn)
    must([c.text for c in whole[0]] == [c.text for c in alone[0]], "what is drawn depends on the batch")
    seen = there.captions(pictures[:2], attention=True, num_beams=1)[0][0]
    must(bool(torch.isfinite(seen.attention).all()), "an attention map is no number")
    low = nanocaption.load(run / LAST, device=site.device, dtype="bfloat16").captions(pictures, num_beams=3)
    must(all(math.isfinite(found[0].log_prob) for found in low), "bfloat16 weights gave no numbers")
    return "greedy, beam 3, diverse beams, drawn, attention, bfloat16 weights"


def tower(folder: Path, **sizes: int) -> Path:
    """A ViT with random weights in `folder`, as a pretrained one would lie there."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ViTConfig(**sizes)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    side = {"height": config.image_size, "width": config.image_size}
    transformers.ViTImageProcessor(size=side).save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "image_size": 32, "patch_size": 8}  # fmt: skip


def resident(site: Site) -> str:
    """A frozen encoder's features that stay on the device train as those that are copied there batch by batch."""
    more = ["--deterministic", "--encoder-model-name", str(tower(site.place / "vit", **SMALL)), "--freeze-encoder",
            "--patch-drop", "0.3", "--feature-views", "2", "--random-flip"]  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        stays = trained(site, *more, name="stays")
    must("of features stay in the memory of" in printed.getvalue(), "the features did not stay on the device")
    with mock.patch.object(inputs, "keep_on_device", lambda *_: None):
        copied = trained(site, *more, name="copied")
    must(course(stays) == course(copied), "the two courses differ")
    must_have_the_same_bits(stays / LAST, copied / LAST)
    return "views, left-out patches, validation and captions from resident features"


# Pictures that take megabytes each in a step.
LARGE = ("--image-size", "256", "--vit-embed-dim", "128", "--vit-patch-size", "8", "--precision", "fp32")


def out_of_memory(site: Site) -> str:
    """What runs out of memory is told with what to change, saved before, and goes on so."""
    more = [*LARGE, "--num-epochs", "1", "--validation-score-images", "0"]
    large, small = (["--batch-size", "200"], ["--batch-size", "20", "--grad-accum-steps", "10"])
    forget(site.device)
    trained(site, *more, *large, name="large")
    needs = torch.cuda.max_memory_allocated(site.device)
    forget(site.device)
    trained(site, *more, *small, name="small")
    has = torch.cuda.max_memory_reserved(site.device)
    must(needs > 1.2 * has, f"the parts take as much as the whole: {has / 1e6:.0f} and {needs / 1e6:.0f} MB")
    with at_most((needs + has) / 2, site.device):
        try:
            trained(site, *more, *large, name="full")
        except SystemExit as error:
            told = str(error)
        else:
            raise AssertionError("it did not run out of memory")
        forget(site.device)
        must("is out of memory with BATCH_SIZE = 200" in told and "GRAD_ACCUM_STEPS" in told, f"it says: {told}")
        last = site.place / "full" / LAST
        train.main([*flags(site, *more, *small, name="full"), "--resume-checkpoint-path", str(last)])
    must(checkpoint.load(last)["epoch"] == 1, "the resumed run did not end")
    steps = [len(log(site.place / name, "train")) for name in ("full", "small")]
    must(steps[0] == steps[1], f"{steps[0]} steps, {steps[1]} without the stop")
    return f"{needs / 1e6:.0f} MB at once, {has / 1e6:.0f} MB in parts"


def forget(device: torch.device) -> None:
    """Nothing of before lies on the device any more, and its largest use is counted anew."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


@contextlib.contextmanager
def at_most(size: float, device: torch.device) -> Iterator[None]:
    """Inside, this process may have so many bytes of the device."""
    forget(device)
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(device).total_memory, device)
    try:
        yield
    finally:
        forget(device)
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def batch_of_all_memory(site: Site) -> str:
    """BATCH_SIZE = "auto" finds fewer captions where there is less memory, and as many can be trained there."""
    run = started(site, *LARGE)
    run.train_set.weights = [100.0] * len(run.train_set)  # as many as 4,000 pictures: what limits is the memory
    settings = run.settings.replace(BATCH_SIZE="auto")
    forget(site.device)
    free = batch_size.choose(settings, run.model, run.train_set, site.device)
    with at_most(0.6 * torch.cuda.max_memory_allocated(site.device), site.device):
        found = batch_size.choose(settings, run.model, run.train_set, site.device)
        must(0 < found < free, f"{found} captions in half of the memory in which {free} fit")
        loss = take_a_step(dataclasses.replace(run, settings=run.settings.replace(BATCH_SIZE=found)))
        must(math.isfinite(loss), "a step of so many has no finite loss")
    return f"{free} captions, in half of what these took {found}"


def compiled(site: Site) -> str:
    """COMPILE trains what is trained without it, up to rounding, left-out patches and validations included."""
    more = ["--encoder-model-name", str(tower(site.place / "vit", **SMALL)), "--patch-drop", "0.5",
            "--validation-score-images", "4"]  # fmt: skip
    plain, fast = trained(site, *more), trained(site, *more, "--compile", name="compiled")
    worst = max(abs(a / b - 1) for a, b in zip(*(course(run)[:: 2] for run in (fast, plain)), strict=True) if b)
    must(worst < 0.05, f"the losses differ by {worst:.1%}")
    return f"losses within {worst:.1e} of those without"


def one_process_group(site: Site) -> str:
    """The sums of several processes, with NCCL and one process: the bits of a run without a process group."""
    more = ["--deterministic", "--grad-accum-steps", "2"]
    alone = trained(site, *more, name="alone")
    with a_group(site):
        must(dist.get_backend() == ("nccl" if site.device.type == "cuda" else "gloo"), "another way of summing")
        must(devices.max_(3, 1) == [3, 1] and devices.gather([{"a": 1}]) == [{"a": 1}], "the ranks do not agree")
        group = trained(site, *more, name="group")
    must(course(alone) == course(group), "the two courses differ")
    must_have_the_same_bits(alone / LAST, group / LAST)
    return "sums, agreements, gathers, saves"


@contextlib.contextmanager
def a_group(site: Site) -> Iterator[None]:
    """Inside, this process is a process group of one, as torchrun would make it of several."""
    if site.device.type == "cuda":
        torch.cuda.set_device(0)
    backend = "nccl" if site.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{site.place / 'store'}", rank=0, world_size=1)
    try:
        yield
    finally:
        devices.stop()


def spread(site: Site) -> str:
    """FSDP on one card: weights that are gathered for each block and spread again train as plain ones."""
    more = ["--precision", "fp32", "--decoder-layers", "2"]
    plain = started(site, *more, name="plain")
    losses = [take_a_step(plain, number) for number in range(3)]
    weights = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
    with a_group(site):
        run = started(site, *more, name="spread")
        sharding.spread(run.model, site.device)
        s = run.settings
        optimizer = build_optimizer(
            run.model, weight_decay=s.WEIGHT_DECAY, betas=s.ADAM_BETAS, eps=s.ADAM_EPS, fused=True
        )
        run = dataclasses.replace(run, optimizer=optimizer)
        must(sharding.is_spread(run.model), "nothing was spread")
        found = [take_a_step(run, number) for number in range(3)]
        with sharding.gathered(run.model):
            val_loss = train.evaluate(run)
        state = {name: sharding.whole(tensor).cpu() for name, tensor in run.model.state_dict().items()}
    must(math.isfinite(val_loss), "the validation gave no number")
    must(all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(found, losses, strict=True)),
         f"losses {found}, without FSDP {losses}")  # fmt: skip
    worst = max((state[name] - tensor.cpu()).abs().max().item() for name, tensor in weights.items())
    must(worst < 1e-3, f"a weight differs by {worst:.1e} after three steps")
    return f"losses of three steps and a validation; weights within {worst:.1e}"


CHECKS: dict[str, Callable[[Site], str]] = {
    "trains": trains, "resumes": resumes, "rewards": rewards, "precisions": precisions, "workers": workers,
    "captions": captions, "resident": resident, "out_of_memory": out_of_memory,
    "batch_of_all_memory": batch_of_all_memory, "compiled": compiled, "one_process_group": one_process_group,
    "spread": spread,
}  # fmt: skip
# On a CPU there is no memory to run out of, and compiling takes minutes.
NEEDS_CUDA = "only a CUDA device has it"
ONLY_CUDA = ("resident", "out_of_memory", "batch_of_all_memory", "compiled")


def measure(name: str, place: str, data: str, device: str) -> list[dict[str, Any]]:
    """The row of a check, for benchmarks/run.py; CannotRun where the device has nothing to look at."""
    if device == "cpu" and name in ONLY_CUDA:
        raise table.CannotRun(NEEDS_CUDA)
    os.environ.setdefault("WANDB_MODE", "disabled")
    site = Site(Path(place) / name, Path(data), torch.device("cuda:0" if device == "cuda" else device))
    site.place.mkdir(parents=True)
    start = time.perf_counter()
    with open(site.place / "printed", "w", encoding="utf-8") as printed:
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                note = CHECKS[name](site)
        except BaseException:
            sys.stderr.write("".join(last_lines(site.place / "printed")))
            raise
    return [{"name": f"check_{name}", "ours": time.perf_counter() - start, "peer": None, "ratio": None, "unit": "s",
             "range": None, "note": note}]  # fmt: skip


def last_lines(path: Path, number: int = 12) -> Sequence[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-number:]


if __name__ == "__main__":
    print(json.dumps({name: (check.__doc__ or "").split(".")[0] for name, check in CHECKS.items()}, indent=1))
