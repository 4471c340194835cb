"""Caption a split with a trained model and score the captions.

    python evaluate.py                                        the newest run's best checkpoint, test split
    python evaluate.py --checkpoint runs/demo-001/last.safetensors --split val
    python evaluate.py --beam-size 1 --device cpu             any setting of config.py is a flag here, too

Writes predictions.json (COCO results layout), references.json (COCO annotations layout), scores.json and report.html
into a folder beside the checkpoint and prints the scores.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import config

_PARSER = argparse.ArgumentParser(
    prog="evaluate.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="All other flags are settings of config.py: python train.py --help",
    allow_abbrev=False,
)
_PARSER.add_argument("--checkpoint", help="a checkpoint file [the best of the newest run under OUTPUT_DIR]")
_PARSER.add_argument("--split", default="test", help="which split of the data set to caption [test]")
_PARSER.add_argument("--output", help="folder for the results [beside the checkpoint, named after it]")

if __name__ == "__main__":
    _own, _rest = config.take_settings(sys.argv[1:])
    _PARSER.parse_args(_rest)
    config.load(_own)  # --help and mistakes answer before torch is imported

import dataset as data  # noqa: E402
import demo_set  # noqa: E402
import inference  # noqa: E402
import metrics  # noqa: E402
import report  # noqa: E402


def main(argv: list[str]) -> None:
    own, rest = config.take_settings(argv)
    arguments = _PARSER.parse_args(rest)
    path = inference.find_checkpoint(arguments.checkpoint, config.load(own).OUTPUT_DIR)
    state, settings = inference.load_state(path, own)
    device = inference.pick_device(settings.DEVICE)
    model, tokenizer = inference.load_model(state, device)

    folder = Path(settings.DATA_DIR) / settings.DATASET
    if not (folder / "captions.json").is_file():
        raise SystemExit(f"There is no data set {folder}. Make it: python prepare_dataset.py --dataset {folder.name}")
    digest = hashlib.sha256((folder / "captions.json").read_bytes()).hexdigest()
    if state["config"]["DATASET"] == settings.DATASET and digest != state["captions_sha256"]:
        print(f"Note: {folder} has changed since the training; its pictures may have been seen there.")
    split = arguments.split
    records = data.load_records(folder, split, settings.DATA_CUTOFF)
    images = data.ImageTextDataset(records, folder / "images", [[] for _ in records], model.image_spec)
    print(f"{path}: epoch {state['epoch']}; captioning {len(records)} images of {settings.DATASET}/{split} on {device}")
    captions = inference.caption_images(
        model, tokenizer, images, batch_size=settings.EVAL_BATCH_SIZE,
        options=inference.search_options(settings), device=device, precision=settings.PRECISION,
        workers=settings.NUM_WORKERS, progress=f"captioning {split}",
    )  # fmt: skip
    best = [row[0].text for row in captions]

    scores, per_image = score_captions(records, best)
    scores |= {
        "split": split,
        "signature": f"nanoCaption metrics (PTB tokens, CIDEr = CIDEr-D); {settings.DATASET}/{split}, {len(records)} "
        f"images; beam {settings.BEAM_SIZE}, length penalty {settings.LENGTH_PENALTY}, at most {settings.MAX_SEQ_LEN} "
        f"tokens; {path.name}",
    }
    label = f"eval_{split}_epoch{state['epoch']}_beam{settings.BEAM_SIZE}_penalty{settings.LENGTH_PENALTY:g}"
    if settings.DATA_CUTOFF is not None:
        label += f"_first{settings.DATA_CUTOFF}"
    output = Path(arguments.output) if arguments.output else path.parent / label
    write_results(output, records, best, per_image, scores, folder / "images", path.parent / "log.jsonl")
    print(scores_table(scores))
    print(f"\npredictions, scores and the gallery: {output}/ (open {output / 'report.html'})")


def score_captions(
    records: list[dict[str, Any]], captions: list[str], people: bool = True
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Scores of one caption per record against its references: (scores.json content, per-image values in order).

    "leave_one_out", with `people`, is what the references score against each other; "truth" is there for drawn scenes.
    """
    references = {record["file_name"]: record["captions"] for record in records}
    candidates = {record["file_name"]: caption for record, caption in zip(records, captions, strict=True)}
    corpus, per_image = metrics.score_prepared(metrics.prepare_references(references), candidates)
    text = metrics.text_statistics(captions)._asdict()
    scores: dict[str, Any] = {"corpus": corpus, "images": len(records), "text": text}
    if people and all(len(captions) > 1 for captions in references.values()):
        scores["leave_one_out"] = metrics.leave_one_out(references)
    if all("scene" in record for record in records):
        totals = {kind: {"true": 0, "claims": 0} for kind in demo_set.TRUTH_KINDS}
        for record, caption in zip(records, captions, strict=True):
            for kind, (true, claims) in demo_set.caption_truth(caption, record["scene"]).items():
                totals[kind]["true"] += true
                totals[kind]["claims"] += claims
        scores["truth"] = totals
    return scores, [per_image[record["file_name"]] for record in records]


def write_results(
    output: Path,
    records: list[dict[str, Any]],
    captions: list[str],
    per_image: list[dict[str, float]],
    scores: dict[str, Any],
    images_dir: Path,
    log: Path,
) -> None:
    """predictions.json, references.json, scores.json and report.html in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    rows = list(enumerate(zip(records, captions, per_image, strict=True)))
    predictions = [
        {"image_id": i, "caption": caption, "file_name": record["file_name"]} for i, (record, caption, _) in rows
    ]
    references = {
        "images": [{"id": i, "file_name": record["file_name"]} for i, (record, _, _) in rows],
        "annotations": [
            {"id": len(records) * n + i, "image_id": i, "caption": text}
            for i, (record, _, _) in rows
            for n, text in enumerate(record["captions"])
        ],
    }
    for name, content in (("predictions", predictions), ("references", references), ("scores", scores)):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (output / f"{name}.json").write_text(text, encoding="utf-8")
    gallery = [
        {"file_name": record["file_name"], "caption": caption, "references": record["captions"], "cider": s["CIDEr"]}
        for _, (record, caption, s) in rows
    ]
    history = report.read_log(log) if log.is_file() else None
    title = f"{log.parent.name}: captions of the {scores['split']} split"
    report.write_report(
        output / "report.html", title=title, scores=scores, predictions=gallery, images_dir=images_dir, history=history
    )


def scores_table(scores: dict[str, Any]) -> str:
    """The scores as lines of text, times 100 as the field prints them."""
    humans = scores.get("leave_one_out")
    lines = [f"\n{'':10}{'model':>8}" + (f"{'people':>10}   (each reference against the others)" if humans else "")]
    for name, value in scores["corpus"].items():
        lines.append(f"{name:10}{100 * value:8.1f}" + (f"{100 * humans[name]:10.1f}" if humans else ""))
    if humans and humans["CIDEr"] > 0:
        lines.append(f"CIDEr is {scores['corpus']['CIDEr'] / humans['CIDEr']:.0%} of what people reach")
    for kind, count in scores.get("truth", {}).items():
        share = f"{count['true'] / count['claims']:.1%}" if count["claims"] else "none named"
        lines.append(f"true {kind:10} {share} of {count['claims']} named")
    if scores["images"] < 100:
        lines.append(f"Only {scores['images']} images: these scores are rough, CIDEr above all.")
    return "\n".join([*lines, scores.get("signature", "")])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
