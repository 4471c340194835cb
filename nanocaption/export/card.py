"""The model card of an exported folder: README.md, complete from what the run itself knows.

card_template.md holds its text, in blocks with named fields. What is not known is said to be unknown, or another block
stands in its place; nothing is left for someone to fill in. Pictures stand beside it where they are of our own
drawing (facts.write_samples), and of no other data set.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from nanocaption.base.hub import SAMPLES
from nanocaption.base.shown import as_markdown
from nanocaption.base.tensors import State, weights_told
from nanocaption.data.prepared import is_mix, parse_mix

_METRICS = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4", "CIDEr": "CIDEr-D",
            "ROUGE_L": "ROUGE-L", "METEOR": "METEOR", "SPICE": "SPICE"}  # fmt: skip
_TYPES = {"Bleu_4": "bleu", "CIDEr": "cider", "ROUGE_L": "rouge"}  # those of the header, by the Hub's names
_TOWERS = {"vit": "ViT", "deit": "DeiT", "dinov2": "DINOv2", "clip": "CLIP", "siglip": "SigLIP"}
_SEEN = {"demo": "drawn scenes", "flickr": "photographs", "coco": "photographs", "own": "pictures"}
_FEW = 100  # pictures: scores over fewer stand nowhere without a warning
_FROM_HUB = " on the Hugging Face Hub"  # how prepare_dataset ends such a source


class Facts(NamedTuple):
    """What a card is written from, apart from the checkpoint's state."""

    name: str  # how people load it: an id of the Hub, or the folder's name
    manifest: Mapping[str, Any] | None  # of the prepared data set it was trained on
    scores: Mapping[str, Any] | None  # scores.json of an evaluation of this very checkpoint
    validation: Mapping[str, Any] | None  # the log's row of the validation that it was saved after
    samples: Sequence[Mapping[str, str]]  # {"file_name", "caption"}
    samples_split: str
    pictures: Sequence[Path] = ()  # those of `samples`, where they may be shown


def write_card(
    state: State, base_model: str | None, image_size: int, facts: Facts, form: str = "nanocaption"
) -> str:
    """The text of README.md.

    base_model: the encoder's id on the Hub, if it has one. image_size: side of the encoder's input, pixels. form: of
    the export, "nanocaption", "transformers", "onnx" or "web".
    """
    config, kind = state["config"], kind_of(state["config"]["DATASET"])
    known = {**state.get("environment", {}), **state.get("scheduler_state_dict", {}), **config}
    fields = defaultdict(lambda: "unknown", {name: _plain(value) for name, value in known.items()})
    told = weights_told(state)
    fields |= {
        "name": facts.name, "title": facts.name.rpartition("/")[2], "header": _header(config, base_model, facts, form),
        "seen": _SEEN[kind], "image_size": image_size, "epoch": state["epoch"], "step": state["step"],
        "averaged": f"; the weights are {as_markdown(told)}" if told else "",
        "written_by": as_markdown(state.get("written_by", "nanoCaption")), **_encoder(state, base_model),
        **_origin(state, _SEEN[kind]), **_objective(state, fields), **_task(config),
    }  # fmt: skip
    texts = re.split(r"^=== (.+) ===\n", Path(__file__).with_name("card_template.md").read_text("utf-8"), flags=re.M)
    blocks = {name: text.strip() for name, text in zip(texts[1::2], texts[2::2], strict=True)}
    for field, (block, own) in {
        "data": _data(config, facts.manifest), "results": _results(config, facts), "samples": _samples(facts),
        "limits": (f"limits {kind}", {}), "use": ("use questions" if config.get("QUESTIONS") else f"use {form}", {}),
        "training": ("training foreign" if is_foreign(state) else "training own", {}),
    }.items():  # fmt: skip
        fields |= own
        fields[field] = blocks[block].format_map(fields)
    if (scored := _scored(config, facts)) is not None and scored < _FEW:
        fields["results"] += "\n\n" + blocks["results few"].format_map(fields | {"images": scored})
    return blocks["card"].format_map(fields) + "\n"


def _task(config: Mapping[str, Any]) -> dict[str, str]:
    """What the model is for, as fields."""
    if config.get("QUESTIONS"):
        return {
            "what_it_is": "It answers questions about pictures: a picture and a question in, a short answer out.",
            "written": "answer", "one": "an answer", "and_cider": "",
            "cannot": "Beside the questions of its training it answers whatever is asked, sensible or not.",
        }  # fmt: skip
    return {
        "what_it_is": "An image captioner: a picture in, one sentence out.", "written": "caption", "one": "a caption",
        "and_cider": ", and CIDEr depends on the number of pictures",
        "cannot": "It reads no text in pictures, and answers no questions.",
    }  # fmt: skip


def _objective(state: State, fields: Mapping[str, str]) -> dict[str, str]:
    """What the weights were trained for, how fast, and from where, as far as the state says."""
    config, rewarded = state["config"], state.get("rewarded_steps", 0)
    begun, xe = config.get("INIT_CHECKPOINT_PATH"), "cross-entropy"
    begun_name = as_markdown(Path(str(begun)).name)
    plan = "{LR_SCHEDULE}, {warmup_steps} warm-up steps, {total_steps} steps planned".format_map(fields)
    found = {
        "objective": xe, "rate": fields["LEARNING_RATE"], "schedule": plan,
        "patch_drop": str(config.get("PATCH_DROP", 0)),
        "begun_with": f"the weights of {begun_name}" if begun else "random weights but for the encoder's",
    }  # fmt: skip
    if config.get("OBJECTIVE") == "scst" and "SCST_LEARNING_RATE" in config:
        own = "rate {SCST_LEARNING_RATE}, {SCST_LR_SCHEDULE}".format_map(fields)
        rewards = ("self-critical training (reward {SCST_REWARD}, <end> as a word, {SCST_SAMPLES} captions a picture, "
                   "weight of cross-entropy {SCST_XE_WEIGHT})").format_map(fields)  # fmt: skip
        first = config["SCST_START_EPOCH"]
        found["objective"] = f"{xe} for {first} epochs, then {rewards}, {own}" if first else rewards
        if not first:
            found["begun_with"] = found["begun_with"] if begun else "the weights of a checkpoint"
            found |= {"rate": fields["SCST_LEARNING_RATE"], "schedule": fields["SCST_LR_SCHEDULE"]}
    elif rewarded:
        found["objective"] = f"{xe}; of what it came from, {rewarded:,} steps were self-critical training by rewards"
    return found


def is_foreign(state: State) -> bool:
    """Whether a model was not trained here, but read from a folder of another program."""
    return state.get("written_by") == "transformers"


def _origin(state: State, seen: str) -> dict[str, str]:
    trained = f"Trained on {seen} of the data set {as_markdown(state['config']['DATASET'])} with nanoCaption."
    added = state["model_arguments"].get("memory_norm", True)
    return {
        "trained": "Made with transformers and taken over as it is." if is_foreign(state) else trained,
        "half": "a block of the encoder holds numbers beyond its range" if added else "it was compared in these only",
        "elsewhere": "" if state["config"]["ENCODER_MODEL_NAME"] or state["config"]["VIT_STEM"] == "patch"
        else " (not this one: its encoder begins with convolutions, which no model of transformers does)",
    }  # fmt: skip


def _scored(config: Mapping[str, Any], facts: Facts) -> int | None:
    """How many pictures the scores of the card are over; None where it has none."""
    if facts.scores:
        return int(facts.scores["images"])
    row = facts.validation or {}
    if not any(row.get(key) is not None for key in _TYPES):
        return None
    return int(config.get("VALIDATION_SCORE_IMAGES") or 0)


def kind_of(dataset: str) -> str:
    """The kind of data set that a name belongs to, or every part of a mix: "demo", "flickr" or "coco"; else "own"."""
    names = [part.name for part in parse_mix(dataset)] if is_mix(dataset) else [dataset]
    known = ("demo", "flickr", "coco")
    kinds = {next((kind for kind in known if name.lower().startswith(kind)), "own") for name in names}
    return kinds.pop() if len(kinds) == 1 else "own"


def _header(config: Mapping[str, Any], base_model: str | None, facts: Facts, form: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset, place = config["DATASET"], _slug(facts.manifest, config["DATASET"])
    row = facts.validation or {}
    split, scores = (facts.scores["split"], facts.scores["corpus"]) if facts.scores else ("val", row)
    scored = _scored(config, facts)
    few = f" (of {scored} pictures only)" if scored is not None and scored < _FEW else ""
    results = [
        EvalResult(
            task_type="image-to-text", task_name="Image captioning", dataset_type=place, dataset_name=dataset,
            dataset_split=split, metric_type=_TYPES[key], metric_name=_METRICS[key] + few,
            metric_value=round(100 * scores[key], 1),
        )
        for key in _TYPES if scores.get(key) is not None
    ]  # fmt: skip
    return ModelCardData(
        library_name="onnx" if form == "web" else form, pipeline_tag="image-to-text",
        license="other", license_name="terms-of-its-data",
        language=language_of(dataset),
        datasets=[place] if place != dataset else None,  # another name would be a dead link
        base_model=base_model,
        metrics=[result.metric_type for result in results] or None, tags=["image-captioning"],
        model_name=facts.name.rpartition("/")[2], eval_results=results or None,
    ).to_yaml()  # fmt: skip


def language_of(dataset: str) -> str | None:
    """The language of a data set's captions, where it is known."""
    return "en" if kind_of(dataset) != "own" else None


def _slug(manifest: Mapping[str, Any] | None, dataset: str) -> str:
    source = str((manifest or {}).get("source", ""))
    return source.removesuffix(_FROM_HUB) if source.endswith(_FROM_HUB) else dataset


# Each of these gives the block of the template that applies, and its fields.


def _data(config: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> tuple[str, dict[str, str]]:
    if manifest is None:
        return "data unknown", {}
    source = str(manifest.get("source", "unknown"))
    if source == "demo_set":
        origin = "drawn by nanoCaption's own code"
    elif source.endswith(_FROM_HUB):
        origin = f"[{as_markdown(source)}](https://huggingface.co/datasets/{quote(_slug(manifest, source))})"
        origin += f", commit {as_markdown(manifest['commit'])}" if manifest.get("commit") else ""
    elif manifest.get("layout") == "mix":
        origin = f"a mix of the sets {as_markdown(source)}"
    else:
        origin = f"a folder of the person who trained it (layout: {as_markdown(manifest.get('layout', 'unknown'))})"
    kind = "questions" if any(count.get("questions") for count in manifest["counts"].values()) else "captions"
    counts = [f"- {as_markdown(split)}: {count['images']:,} images, {count.get(kind, 0):,} {kind}"
              for split, count in manifest["counts"].items()]  # fmt: skip
    if config["DATA_CUTOFF"] is not None:
        counts.append(f"- only the first {config['DATA_CUTOFF']:,} images of each split were used")
    terms = as_markdown(manifest.get("licence", "unknown"))
    return "data known", {"source": origin, "terms": terms, "counts": "\n".join(counts)}


def _results(config: Mapping[str, Any], facts: Facts) -> tuple[str, dict[str, str]]:
    scores, row = facts.scores, facts.validation
    if scores and "rule" in scores:
        found = [(name, value, scores["intervals"].get(name)) for name, value in scores["corpus"].items()]
        found += [(f"control: {name}", part["accuracy"], part["interval"]) for name, part in scores["controls"].items()]
        rows = [_row(name, f"{100 * value:.1f}", f"{100 * spread[0]:.1f} to {100 * spread[1]:.1f}" if spread else "")
                for name, value, spread in found]  # fmt: skip
        return "results answers", {"split": scores["split"], "images": f"{scores['images']:,}",
                                   "score_rows": "\n".join(rows), "signature": scores["signature"]}  # fmt: skip
    if scores:
        people, rows = scores.get("leave_one_out", {}), []
        for key, value in scores["corpus"].items():
            low, high = scores["intervals"][key]
            own = f"{100 * people[key]:.1f}" if key in people else ""
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append(_row(_METRICS.get(key, key), f"{100 * value:.1f}", interval, own))
        return "results evaluated", {"split": scores["split"], "images": f"{scores['images']:,}",
                                     "score_rows": "\n".join(rows), "signature": scores["signature"]}  # fmt: skip
    if row:
        figures = [f"loss {row['val_loss']:.4f} per token"]
        figures += [f"{_METRICS[key]} {100 * row[key]:.1f}" for key in _TYPES if row.get(key) is not None]
        figures += [f"accuracy {100 * row['accuracy']:.1f}"] if row.get("accuracy") is not None else []
        images = config.get("VALIDATION_SCORE_IMAGES")
        what = "answers about" if "accuracy" in row else "captions of"
        greedy = f" (greedy {what} at most {images} images)" if len(figures) > 1 else ""
        return "results validated", {"figures": ", ".join(figures) + greedy}
    return "results none", {}


def _samples(facts: Facts) -> tuple[str, dict[str, str]]:
    rows = [_row(sample["file_name"], sample["caption"]) for sample in facts.samples[:3]]
    shown = f"![The pictures of this table, in its order, side by side]({SAMPLES})\n\n" if facts.pictures else ""
    own = {"samples_split": facts.samples_split, "sample_rows": "\n".join(rows), "sample_pictures": shown}
    return ("samples some", own) if rows else ("samples none", {})


def _encoder(state: State, base_model: str | None) -> dict[str, str]:
    """What both encoder and decoder are, as fields."""
    config, weights = state["config"], state["model_state_dict"]
    tower, rate = state["model_arguments"].get("encoder_config"), config.get("ENCODER_LEARNING_RATE")
    if tower:
        kind = tower["model_type"].removesuffix("_vision_model")
        what = f"A {_TOWERS.get(kind, tower['model_type'])} vision tower"
        sizes = [tower.get(name) for name in ("num_hidden_layers", "hidden_size", "patch_size")]
    else:
        what, sizes = "A small ViT", [config[f"VIT_{name}"] for name in ("LAYERS", "EMBED_DIM", "PATCH_SIZE")]
    frozen = config["FREEZE_ENCODER"]
    start = f"pretrained, {as_markdown(base_model or 'from a folder')}; {'frozen' if frozen else 'trained along'}"
    parameters = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("encoder."))
    return {
        "encoder": "{} (depth {}, width {}, {}-pixel patches)".format(what, *sizes),
        "encoder_origin": start if config["ENCODER_MODEL_NAME"] else "from scratch",
        "encoder_rate": rate if rate is not None else "0 (frozen)" if frozen else "the same",
        "encoder_parameters": f"{parameters:,}",
        "other_parameters": f"{sum(tensor.numel() for tensor in weights.values()) - parameters:,}",
        "vocabulary": f"{len(weights['decoder.embedding.weight']):,}",
    }


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_markdown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return as_markdown(value) if isinstance(value, str) else value


def _row(*cells: str) -> str:
    return "| " + " | ".join(map(as_markdown, cells)) + " |"
