"""The ladder: cross-entropy, what each lever adds to it, and a plain captioner of transformers with the same minutes.

    python benchmarks/ladder.py --raw-data-dir FLICKR8K --encoder-model-name VIT_TINY
    python benchmarks/ladder.py ... --rungs xe kept peer --seeds 1 2 3
    python benchmarks/ladder.py --table                       run nothing, print what is there

Each rung is a run of train.py with the flags in RUNGS, perhaps begun from the end of another rung, and an evaluation by
beam search on the dev split (`--split val`), tested against the rung that it is compared with (paired bootstrap of
`evaluate.py --compare`). Hours in all; what is done is kept in --output, and the same command goes on from there: a run
that was stopped is resumed, an evaluation that is there is taken. Minutes are those of the training commands of a rung
and of all that it began from; they hold for an otherwise idle machine only.
The peer is transformers' VisionEncoderDecoderModel with a GPT-2 decoder of the same sizes on the same features and
tokens, trained by cross-entropy for as many minutes as the rung "xe" took (see ladder_peer.py).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanocaption.base.files import write_atomically  # noqa: E402
from nanocaption.runs.folder import LAST  # noqa: E402

RECIPE = ROOT / "recipes" / "flickr8k_vit_tiny.py"
PEER = "peer"


class Rung(NamedTuple):
    """One run of train.py and its evaluation; or, without `train`, an evaluation of what other rungs trained."""

    train: tuple[str, ...] = ()  # flags of train.py
    start: str | None = None  # the rung with whose last weights it begins
    of: tuple[str, ...] = ()  # without `train`: the rung that is evaluated; several are an ensemble
    soup: bool = False  # the weights of `of` are averaged instead, with these
    average: tuple[str, ...] = ()  # flags of nanocaption average
    base: str | None = "xe"  # the rung that it is tested against
    evaluate: tuple[str, ...] = ()  # flags of evaluate.py
    other_seed: int = 0  # added to the seed: another run from the same start


# The recipe before its levers: every rung begins with these, and flags after them win.
PLAIN = (
    "--objective", "xe", "--num-epochs", "8", "--encoder-layers", "none", "--no-random-flip", "--feature-views", "0",
    "--random-crop-area", "1", "--patch-drop", "0", "--ema-decay", "0", "--scst-start-epoch", "0",
)  # fmt: skip
LAYERS = ("--encoder-layers", "6,9,12")
VIEWS = (*LAYERS, "--random-flip", "--feature-views", "2")
HALF = (*VIEWS, "--patch-drop", "0.5")
REWARDS = (*HALF, "--objective", "scst", "--num-epochs", "4")
KEPT = (*REWARDS, "--ema-decay", "0.999")  # a part of the weights that the phase began with stays in the average
CROPS = (*LAYERS, "--random-flip", "--random-crop-area", "0.6", "--num-epochs", "13")  # encoded anew every epoch
CROPS_KEPT = (*CROPS, "--patch-drop", "0.5", "--objective", "scst", "--num-epochs", "6", "--ema-decay", "0.9995")
UNFROZEN = (
    *HALF, "--no-freeze-encoder", "--feature-views", "0", "--random-crop-area", "0.6", "--num-epochs", "6",
    "--learning-rate", "4e-4", "--encoder-learning-rate", "1e-4", "--patch-drop-whole-epochs", "1",
)  # fmt: skip
RUNGS: dict[str, Rung] = {
    "xe": Rung(PLAIN, base=None),
    "layers": Rung((*PLAIN, *LAYERS)),
    "views": Rung((*PLAIN, *VIEWS), base="layers"),
    "half": Rung((*PLAIN, *HALF), base="views"),
    "longer": Rung((*PLAIN, *HALF, "--num-epochs", "16"), base="half"),
    "penalty": Rung(of=("views",), base="views", evaluate=("--length-penalty", "0.7")),
    "consensus": Rung(of=("views",), base="views", evaluate=("--beam-size", "10", "--consensus", "20")),
    "rewards": Rung((*PLAIN, *REWARDS), start="views", base="views"),
    "rewards_xe": Rung((*PLAIN, *REWARDS, "--scst-xe-weight", "0.25"), start="views", base="rewards"),
    "rewards_bleu": Rung((*PLAIN, *REWARDS, "--scst-reward", "cider+bleu"), start="views", base="rewards"),
    "part_way": Rung(of=("views", "rewards"), soup=True, average=("--weights", "0.75,0.25"), base="rewards"),
    "kept": Rung((*PLAIN, *KEPT), start="views", base="rewards"),
    "crops": Rung((*PLAIN, *CROPS), base="views"),
    "crops_kept": Rung((*PLAIN, *CROPS_KEPT), start="crops", base="crops"),
    "crops_again": Rung((*PLAIN, *CROPS_KEPT), start="crops", base="crops_kept", other_seed=100),
    "soup": Rung(of=("crops_kept", "crops_again"), soup=True, base="crops_kept"),
    "unfrozen": Rung((*PLAIN, *UNFROZEN), start="views", base="views"),
    "unfrozen_kept": Rung((*PLAIN, *CROPS_KEPT), start="unfrozen", base="crops_kept"),
    "ensemble": Rung(of=("unfrozen_kept", "crops_kept"), base="unfrozen_kept"),
}  # fmt: skip


class Place(NamedTuple):
    """Where the ladder stands, and what every command of it is told."""

    output: Path
    data: tuple[str, ...] = ()  # flags before those of a rung
    more: tuple[str, ...] = ()  # flags after them


def main() -> None:
    a = arguments()
    place = Place(a.output, more=tuple(a.more))
    if not a.table:
        if not (a.raw_data_dir and a.encoder_model_name):
            raise SystemExit("--raw-data-dir and --encoder-model-name: give both; --help says what they are.")
        place = place._replace(data=(
            "--raw-data-dir", a.raw_data_dir, "--encoder-model-name", a.encoder_model_name,
            "--data-dir", str(a.output / "data"), "--output-dir", str(a.output / "runs"),
        ))  # fmt: skip
        for seed in a.seeds:
            for name in a.rungs:
                if name == PEER:
                    train_peer(place, seed)
                else:
                    climb(place, name, seed)
    print(table(a.output))


def arguments() -> argparse.Namespace:
    names = [*RUNGS, PEER]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw-data-dir", help="Flickr8k: pictures and captions, in any layout that prepare reads")
    parser.add_argument("--encoder-model-name", help="a ViT-Tiny/16, as a folder or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("ladder"), help="folder of data, runs and results [ladder]")
    parser.add_argument("--rungs", nargs="+", choices=names, default=names, metavar="RUNG", help=f"{', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], help="each rung once for each of them [1]")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is there")
    found, more = parser.parse_known_args()
    found.more = more  # settings of all runs, e.g. --precision bf16
    return found


def climb(place: Place, name: str, seed: int) -> Path:
    """Train and score a rung, and first what it needs, where that is not there; the checkpoint it is judged by."""
    rung = RUNGS[name]
    result = place.output / f"{name}-{seed}.json"
    found = json.loads(result.read_text()) if result.exists() else {}
    if not found:
        members = [climb(place, other, seed) for other in rung.of]
        own = 0.0
        if rung.train:
            checkpoint, own = train(place, name, seed)
        elif rung.soup:
            checkpoint = place.output / f"{name}-{seed}.safetensors"
            command("-m", "nanocaption", "average", *map(str, members), "-o", str(checkpoint), *rung.average)
        else:
            checkpoint = Path(",".join(map(str, members)))
        found = {"checkpoint": str(checkpoint), "own_minutes": own}
        found |= score(place, name, seed, checkpoint)
        write_atomically(result, json.dumps(found, indent=1) + "\n")
    return Path(found["checkpoint"])


def minutes_of(output: Path, name: str, seed: str | int) -> float:
    """Of the training of a rung and of all that it came from, each counted once."""
    needed, found = [name], set[str]()
    while needed:
        rung = needed.pop()
        found.add(rung)
        needed += [*RUNGS[rung].of, *filter(None, [RUNGS[rung].start])]
    return sum(float(json.loads((output / f"{rung}-{seed}.json").read_text())["own_minutes"]) for rung in found)


def train(place: Place, name: str, seed: int) -> tuple[Path, float]:
    """The run of a rung, begun or resumed: its last checkpoint, and its minutes."""
    rung, folder = RUNGS[name], place.output / "runs" / f"{name}-{seed}"
    begun = ["--run-name", folder.name, "--seed", str(seed + rung.other_seed)]
    if rung.start:
        begun += ["--init-checkpoint-path", str(climb(place, rung.start, seed))]
    if (folder / LAST).exists():
        begun = ["--resume-checkpoint-path", str(folder / LAST)]
    clock, start = place.output / f"{folder.name}.minutes", time.monotonic()
    try:
        command("train.py", str(RECIPE), *place.data, *rung.train, *begun, *place.more)
    finally:
        minutes = (time.monotonic() - start) / 60 + (float(clock.read_text()) if clock.exists() else 0.0)
        write_atomically(clock, f"{minutes:.2f}\n")
    return folder / LAST, minutes


def score(place: Place, name: str, seed: int, checkpoint: Path) -> dict[str, Any]:
    """Scores of a rung on dev, and its differences from the rung that it is tested against."""
    rung, output = RUNGS[name], place.output / "results" / f"{name}-{seed}"
    command("evaluate.py", "--checkpoint", str(checkpoint), "--split", "val", "--output", str(output), *rung.evaluate)
    found: dict[str, Any] = {"scores": json.loads((output / "scores.json").read_text())}
    if rung.base:
        climb(place, rung.base, seed)
        differences = place.output / "results" / f"{name}-{seed}.differences.json"
        base = place.output / "results" / f"{rung.base}-{seed}"
        command("evaluate.py", "--compare", str(base), str(output), "--json", str(differences))
        found["differences"] = json.loads(differences.read_text())["differences"]
    return found


def train_peer(place: Place, seed: int) -> None:
    """The peer with the minutes of the rung "xe", and its scores."""
    result, output = place.output / f"{PEER}-{seed}.json", place.output / "results" / f"{PEER}-{seed}"
    if result.exists():
        return
    climb(place, "xe", seed)
    minutes = minutes_of(place.output, "xe", seed)
    captions = place.output / "runs" / f"{PEER}-{seed}"
    settings = (str(RECIPE), *place.data, *PLAIN, "--seed", str(seed), *place.more)
    command("benchmarks/ladder_peer.py", "--minutes", f"{minutes:.1f}", "--output", str(captions), *settings)
    file = str(captions / "dev.json")
    data = ("--dataset", "flickr8k", *place.data, *place.more)
    command("evaluate.py", *data, "--predictions", file, "--split", "val", "--output", str(output))
    found = {"own_minutes": minutes, "checkpoint": file, "scores": json.loads((output / "scores.json").read_text())}
    write_atomically(result, json.dumps(found, indent=1) + "\n")


HEAD = ("", "seed", "CIDEr [95 %]", "BLEU-4", "against", "difference, p", "bad endings", "no full stop", "distinct-2",
        "minutes")  # fmt: skip


def table(output: Path) -> str:
    """The rungs that are there as a table in Markdown; scores times 100, minutes of training from the beginning."""
    rows: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for name in (*RUNGS, PEER):
        files = [path for path in output.glob(f"{name}-*.json") if path.stem[len(name) + 1 :].isdecimal()]
        rows += [row_of(name, path) for path in sorted(files, key=lambda path: int(path.stem[len(name) + 1 :]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def row_of(name: str, path: Path) -> list[str]:
    found = json.loads(path.read_text())
    scores, text = found["scores"], found["scores"]["text"]
    low, high = scores["intervals"]["CIDEr"]
    seed, base, change = path.stem[len(name) + 1 :], "", ""
    minutes = minutes_of(path.parent, name, seed) if name in RUNGS else found["own_minutes"]
    if difference := found.get("differences", {}).get("CIDEr"):
        base, change = RUNGS[name].base, f"{100 * difference['difference']:+.1f}, {difference['p']:.4f}"
    return [
        name, seed, f"{100 * scores['corpus']['CIDEr']:.1f} [{100 * low:.1f}-{100 * high:.1f}]",
        f"{100 * scores['corpus']['Bleu_4']:.1f}", base, change, f"{text['bad_endings']:.1%}",
        f"{text['unstopped']:.1%}", f"{text['distinct_2']:.3f}", f"{minutes:.0f}",
    ]  # fmt: skip


def command(*words: str) -> None:
    """Run a command of the checkout. SystemExit where it failed: what is done is kept."""
    print("\n$ python", *words, flush=True)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"The command above ended with {done.returncode}. The same ladder goes on from there.")


if __name__ == "__main__":
    main()
