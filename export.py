"""Export a checkpoint: a folder that captions pictures anywhere, without network, and can be put on the Hub.

    python export.py my_captioner                                 the newest run's best checkpoint
    python export.py runs/demo-001/best_cider.safetensors my_captioner
    python export.py my_captioner --push user/name                and upload it to the Hugging Face Hub

pretrained.py says what is in the folder. Its card, README.md, takes the scores of an evaluation of the same checkpoint
where there is one beside it: run evaluate.py first. With HF_REPO_ID a training does the same for each new best
checkpoint, in its own folder runs/<run>/export, and uploads it beside the training.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import commands
import config

_PARSER = argparse.ArgumentParser(
    prog="export.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="All other flags are settings of config.py, e.g. --data-dir and --no-hf-private: python train.py --help",
    allow_abbrev=False,
)
_PARSER.add_argument("checkpoint", nargs="?", help="a checkpoint file [the best of the newest run under OUTPUT_DIR]")
_PARSER.add_argument("folder", type=Path, help="new or empty, or an older export, whose files are replaced")
_PARSER.add_argument("--push", metavar="USER/NAME", help="upload the folder to this model repository of the Hub")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the arguments, the flags that are settings), both checked."""
    own, rest = config.take_settings(argv)
    arguments = _PARSER.parse_intermixed_args(rest)
    if arguments.push is not None:
        own += ["--hf-repo-id", arguments.push]
    config.load(own)
    return arguments, own


if __name__ == "__main__":
    _parse(sys.argv[1:])  # --help and mistakes answer before torch is imported
    commands.begin()

import contextlib  # noqa: E402
import shlex  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402

from tqdm import tqdm  # noqa: E402

import card  # noqa: E402
import distributed  # noqa: E402
import encoder  # noqa: E402
import hub  # noqa: E402
import inference  # noqa: E402
import mixing  # noqa: E402
import model as models  # noqa: E402
import pretrained  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import saver  # noqa: E402


def main(argv: list[str]) -> None:
    arguments, own = _parse(argv)
    pretrained.check_target(arguments.folder)
    path = inference.find_checkpoint(arguments.checkpoint, config.load(own).OUTPUT_DIR)
    if inference.is_exported(path):
        raise SystemExit(f"{path.parent} is an export already. To upload it: python hub.py {path.parent} USER/NAME")
    if arguments.push and (problem := hub.access_problem(arguments.push)):
        raise SystemExit(f"Nothing can be uploaded to {arguments.push}: {problem}.")
    state, settings = inference.load_state(path, own)
    facts = write(arguments.folder, state, path, Path(settings.DATA_DIR), arguments.push)
    models.ImageToTextModel.from_pretrained(arguments.folder)  # proves that it loads
    size = (arguments.folder / hub.WEIGHTS).stat().st_size / 1e6
    print(f"{arguments.folder}: {path} after {state['epoch']} epochs, {size:.1f} MB of weights; verified")
    if not facts.scores:
        print("Note: the card has no test scores. For these, evaluate first, then export again:\n"
              f"    python evaluate.py --checkpoint {shlex.quote(str(path))}")  # fmt: skip
    if arguments.push:
        print(f"{hub.push(arguments.folder, arguments.push, settings.HF_PRIVATE, title(state, facts))}")


def write(folder: Path, state: dict[str, Any], origin: Path, data_dir: Path, repo_id: str | None) -> card.Facts:
    """Write the export of `state`, the content of the checkpoint `origin`; returns what its card was written from.

    repo_id: where it will be uploaded to; the card then shows how to load it from there.
    """
    facts = find_facts(state, origin, data_dir, repo_id or folder.name)
    settings = state["config"]
    spec = state["model_arguments"].get("image_spec") or encoder.scratch_image_spec(settings["IMAGE_SIZE"] or 64)
    name = settings["ENCODER_MODEL_NAME"]
    base_model = name if name and pretrained.is_hub_id(name) else None
    pretrained.write(folder, state, card.write_card(state, base_model, spec["size"], facts))
    return facts


def find_facts(state: dict[str, Any], origin: Path, data_dir: Path, name: str) -> card.Facts:
    """What lies around a checkpoint and belongs to it: data set, scores of an evaluation, validation, samples."""
    manifest = results.read_object(data_dir / mixing.folder_name(state["config"]["DATASET"]) / "manifest.json")
    if manifest.get("captions_sha256") != state.get("captions_sha256"):
        manifest = {}  # of other data than it was trained on
    log = origin.parent / "log.jsonl"
    rows = [row for row in report.read_log(log) if row.get("step") == state["step"]] if log.is_file() else []
    by_type = {row.get("type"): row for row in rows if row.get("epoch") == state["epoch"]}
    scores, samples = find_evaluation(origin, state["config"])
    split = scores["split"] if samples else "val"
    samples = samples or by_type.get("samples", {}).get("samples", [])
    return card.Facts(name, manifest or None, scores or None, by_type.get("val"), samples[:3], split)


def find_evaluation(origin: Path, config: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(scores.json, predictions.json) of the evaluation beside this very file that says most of an export of it.

    Only of the data set it was trained on. First those that decoded as `config` (the export) does, among them the test
    split's, the one of most pictures, the newest. Random and shortened captions are no export's. Both results are empty
    where there is none.
    """
    own_decoding = {
        "beam": config["BEAM_SIZE"], "length penalty": config["LENGTH_PENALTY"], "longest": config["MAX_SEQ_LEN"],
        "shortest": config["MIN_LENGTH"], "no repeated n-gram": config["NO_REPEAT_NGRAM"],
    }  # fmt: skip
    dataset, found = mixing.folder_name(config["DATASET"]), []
    read = [(path, results.read_object(path)) for path in origin.parent.glob("eval_*/scores.json")]
    read = [(path, scores) for path, scores in read if scores.get("dataset") == dataset and "checkpoints" in scores]
    own = [results.digest(origin)] if read else []  # takes reading all of it
    for path, scores in read:
        if scores["checkpoints"] == own and not {"sampled with seed", "cut at"} & scores["decoding"].keys():
            alike = own_decoding.items() <= scores["decoding"].items() and "groups" not in scores["decoding"]
            found.append(((alike, scores["split"] == "test", scores["images"], path.stat().st_mtime), path, scores))
    if not found:
        return {}, []
    _, path, scores = max(found, key=lambda entry: entry[0])
    predictions = path.with_name("predictions.json")
    return scores, json.loads(predictions.read_text("utf-8")) if predictions.is_file() else []


def title(state: dict[str, Any], facts: card.Facts) -> str:
    """One line for a commit: the epoch, and the best figures that are known."""
    if facts.scores:
        figures = [f"{facts.scores['split']} CIDEr {100 * facts.scores['corpus']['CIDEr']:.1f}"]
    elif facts.validation:
        row = facts.validation
        figures = [f"validation loss {row['val_loss']:.4f}"]
        figures += [f"CIDEr {100 * row['CIDEr']:.1f} (greedy)"] if "CIDEr" in row else []
    else:
        figures = [f"step {state['step']}"]
    return f"epoch {state['epoch']}: {', '.join(figures)}"


# --- Beside a training ---


def check_hub(settings: Any) -> None:
    """At the start of a training with HF_REPO_ID: say what an upload will fail from. The training goes on."""
    if settings.HF_REPO_ID is None or distributed.rank() != 0:
        return
    problem = hub.access_problem(settings.HF_REPO_ID)
    if problem:
        print(f"HF_REPO_ID = {settings.HF_REPO_ID!r}: {problem}. Training goes on; uploads will be tried.", flush=True)


@contextlib.contextmanager
def uploads(settings: Any, run: Path, writer: saver.Saver) -> Iterator[None]:
    """While it lasts each new best checkpoint that `writer` saves is exported to `run`/export and uploaded.

    Nothing of it stops or delays the training: the folder is written by the writer's thread, from the state it has in
    hand, and the upload is a process of its own. Afterwards the last one is waited for, hub.WAIT_SECONDS at most, and
    not at all where the training was stopped.
    """
    if settings.HF_REPO_ID is None or distributed.rank() != 0:
        yield
        return
    folder = run / "export"
    beside = hub.Uploads(settings.HF_REPO_ID, settings.HF_PRIVATE, lambda text: tqdm.write(text))

    def publish(state: dict[str, Any], names: Sequence[str]) -> None:
        best = next((run / name for name in names if name.startswith("checkpoint_epoch_")), None)
        if best is None:
            return
        try:
            beside.end()  # it reads the folder
            facts = write(folder, state, best, Path(settings.DATA_DIR), settings.HF_REPO_ID)
            command = ["python", "export.py", str(best), str(folder), "--push", settings.HF_REPO_ID]
            beside.start(folder, title(state, facts), shlex.join(command))
        except Exception as error:  # whatever the disk or the machine refuses: the checkpoint itself is written
            tqdm.write(f"WARNING: {best} was not exported to {folder}: {error}", file=sys.stderr)

    writer.on_saved = publish
    try:
        yield
    except BaseException:
        beside.finish(0)
        raise
    beside.finish(hub.WAIT_SECONDS)


if __name__ == "__main__":
    commands.run(main)
