"""What lies around a checkpoint and belongs to its export: data set, scores, validation, samples."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from nanocaption.base import hub
from nanocaption.base.files import log_rows, write_file
from nanocaption.base.tensors import State
from nanocaption.data.pictures import thumbnail
from nanocaption.data.prepared import folder_name
from nanocaption.export.card import Facts, write_card
from nanocaption.model import exported
from nanocaption.score import results

_GAP = 8  # pixels between the pictures of samples.jpg


def write_export(folder: Path, state: State, origin: Path, data_dir: Path, repo_id: str | None) -> Facts:
    """Write the export of `state`, the content of the checkpoint `origin`; returns what its card was written from.

    repo_id: where it will be uploaded to; the card then shows how to load it from there.
    """
    facts = find_facts(state, origin, data_dir, repo_id or folder.name)
    exported.write(folder, state, card_of(state, facts, "nanocaption"))
    write_samples(folder, facts)
    return facts


def write_samples(folder: Path, facts: Facts) -> None:
    """The picture that the card of `folder` shows, side by side those of its samples; none where it shows none."""
    target = folder / hub.SAMPLES
    if not facts.pictures:
        target.unlink(missing_ok=True)
        return
    small = [thumbnail(path) for path in facts.pictures]
    strip = Image.new("RGB", (sum(one.width + _GAP for one in small) - _GAP, max(one.height for one in small)), "white")
    left = 0
    for one in small:
        strip.paste(one, (left, 0))
        left += one.width + _GAP
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=85)
    write_file(target, buffer.getvalue())


def card_of(state: State, facts: Facts, form: str) -> str:
    """The text of the card of an export in the format `form`."""
    name = state["config"]["ENCODER_MODEL_NAME"]
    base_model = name if name and exported.is_hub_id(name) else None
    return write_card(state, base_model, exported.image_spec_of(state)["size"], facts, form)


def find_facts(state: State, origin: Path, data_dir: Path, name: str) -> Facts:
    """What lies around a checkpoint and belongs to it: data set, scores of an evaluation, validation, samples."""
    prepared = data_dir / folder_name(state["config"]["DATASET"])
    manifest: Mapping[str, Any] = results.read_object(prepared / "manifest.json")
    if manifest.get("captions_sha256") != state.get("captions_sha256"):
        manifest = {}  # of other data than it was trained on
    log = origin.parent / "log.jsonl"
    rows = [row for row in log_rows(log) if row.get("step") == state["step"]] if log.is_file() else []
    by_type = {row.get("type"): row for row in rows if row.get("epoch") == state["epoch"]}
    scores, samples = find_evaluation(origin, state["config"])
    split = str(scores["split"]) if samples else "val"
    samples = (samples or by_type.get("samples", {}).get("samples", []))[:3]
    pictures = [prepared / "images" / str(sample["file_name"]) for sample in samples]
    if manifest.get("source") != "demo_set" or not all(path.is_file() for path in pictures):
        pictures = []  # others' pictures are not ours to pass on
    return Facts(name, manifest or None, scores or None, by_type.get("val"), samples, split, pictures)


def find_evaluation(
    origin: Path, config: Mapping[str, object]
) -> tuple[dict[str, object], list[dict[str, str]]]:
    """(scores.json, predictions.json) of the evaluation beside this very file that says most of an export of it.

    Only of the data set it was trained on. First those that decoded as `config` (the export) does, among them the test
    split's, the one of most pictures, the newest. Random and shortened captions are no export's. Both results are empty
    where there is none.
    """
    own_decoding = {
        "beam": config["BEAM_SIZE"], "length penalty": config["LENGTH_PENALTY"], "longest": config["MAX_SEQ_LEN"],
        "shortest": config["MIN_LENGTH"], "no repeated n-gram": config["NO_REPEAT_NGRAM"],
    }  # fmt: skip
    dataset, found = folder_name(str(config["DATASET"])), []
    read: list[tuple[Path, dict[str, Any]]]
    read = [(path, results.read_object(path)) for path in origin.parent.glob("eval_*/scores.json")]
    read = [(path, scores) for path, scores in read if scores.get("dataset") == dataset and "checkpoints" in scores]
    own = [results.digest(origin)] if read else []  # takes reading all of it
    for path, scores in read:
        if scores["checkpoints"] == own and not {"sampled with seed", "cut at"} & scores["decoding"].keys():
            alike = own_decoding.items() <= scores["decoding"].items() and "groups" not in scores["decoding"]
            alike = alike and "consensus of" not in scores["decoding"]
            alike = alike and bool(config.get("NO_BAD_ENDINGS")) == ("no bad endings" in scores["decoding"])
            alike = alike and bool(config.get("QUESTIONS")) == ("rule" in scores)
            found.append(((alike, scores["split"] == "test", scores["images"], path.stat().st_mtime), path, scores))
    if not found:
        return {}, []
    _, path, scores = max(found, key=lambda entry: entry[0])
    predictions = path.with_name("predictions.json")
    if "rule" in scores:
        return scores, []  # of answers: samples are the log's, which has the questions beside them
    return scores, json.loads(predictions.read_text("utf-8")) if predictions.is_file() else []


def title_of(state: State, facts: Facts) -> str:
    """One line for a commit: the epoch, and the best figures that are known."""
    if facts.scores:
        name = "accuracy" if "rule" in facts.scores else "CIDEr"
        figures = [f"{facts.scores['split']} {name} {100 * facts.scores['corpus'][name]:.1f}"]
    elif facts.validation:
        row = facts.validation
        figures = [f"validation loss {row['val_loss']:.4f}"]
        figures += [f"CIDEr {100 * row['CIDEr']:.1f} (greedy)"] if "CIDEr" in row else []
    else:
        figures = [f"step {state['step']}"]
    return f"epoch {state['epoch']}: {', '.join(figures)}"
