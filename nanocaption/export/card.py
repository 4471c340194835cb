"""The model card of an exported folder: README.md, complete from what the run itself knows.

What is not known is said to be unknown, or left out; nothing is left for someone to fill in. No picture stands in it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nanocaption.data.prepared import is_mix, parse_mix

_METRICS = {"Bleu_1": "BLEU-1", "Bleu_2": "BLEU-2", "Bleu_3": "BLEU-3", "Bleu_4": "BLEU-4", "CIDEr": "CIDEr-D",
            "ROUGE_L": "ROUGE-L", "METEOR": "METEOR", "SPICE": "SPICE"}  # fmt: skip
_TYPES = {"Bleu_4": "bleu", "CIDEr": "cider", "ROUGE_L": "rouge"}  # those of the header, by the Hub's names
_TRAINING = (
    ("optimizer", "AdamW, betas {ADAM_BETAS}, weight decay {WEIGHT_DECAY}, gradient norm at most {GRAD_CLIP_VALUE}"),
    ("peak learning rate", "{LEARNING_RATE}, of the encoder {ENCODER_LEARNING_RATE}"),
    ("schedule", "{LR_SCHEDULE}, {warmup_steps} warm-up steps, {total_steps} steps planned"),
    ("batch", "{BATCH_SIZE} captions x {GRAD_ACCUM_STEPS} (accumulated) x {processes} (processes) per step"),
    ("captions of one image together", "{CAPTIONS_PER_IMAGE}"),
    ("dropout, label smoothing", "{DECODER_DROPOUT}, {LABEL_SMOOTHING}"),
    ("augmentation", "random crops of at least {RANDOM_CROP_AREA} of the area (1.0: none); random flip: {RANDOM_FLIP}"),
    ("seed, precision", "{SEED}, {precision}"),
    ("done when this was saved", "{epoch} of {NUM_EPOCHS} epochs, {step} steps"),
    ("made with", "{written_by}, torch {torch} on {device}"),
)
_LIMITS = {
    "demo": "The pictures of its training are simple drawings of a few kinds of things in a few colours. It knows "
    "nothing else: its captions of photographs have no meaning.",
    "flickr": "Its captions copy how the annotators of Flickr wrote: English, one sentence, mostly about people and "
    "dogs in everyday scenes. The annotators named the gender, age and often the ethnic origin of people they did not "
    "know, from looks alone; the model repeats such guesses, and more often for some groups than for others. Do not "
    "use what it says about people as a fact.",
    "coco": "Its captions copy how the annotators of COCO wrote: English, one sentence, about common things. They "
    "named the gender of people from looks alone; the model repeats such guesses. Do not use what it says about people "
    "as a fact.",
    "own": "It knows the things, the words and the habits of its training captions, and nothing else. What those say "
    "of people, the model repeats, guesses and prejudice included.",
}
_ALWAYS = (
    "A small decoder trained on few captions: on pictures unlike those of its training it still writes a fluent "
    "caption, which may be wrong in things, numbers, colours and places. It reads no text in pictures, and answers no "
    "questions. Let nobody rely on a caption without a look at the picture."
)


class Facts(NamedTuple):
    """What a card is written from, apart from the checkpoint's state."""

    name: str  # how people load it: an id of the Hub, or the folder's name
    manifest: Mapping[str, Any] | None  # of the prepared data set it was trained on
    scores: Mapping[str, Any] | None  # scores.json of an evaluation of this very checkpoint
    validation: Mapping[str, Any] | None  # the log's row of the validation that it was saved after
    samples: Sequence[Mapping[str, str]]  # {"file_name", "caption"}
    samples_split: str


def write_card(state: Mapping[str, Any], base_model: str | None, image_size: int, facts: Facts) -> str:
    """The text of README.md.

    state: as checkpoint.load gives it. base_model: the encoder's id on the Hub, if it has one. image_size: side of the
    encoder's input, pixels.
    """
    sections = [
        _what(state, facts), _use(facts.name), _data(state, facts.manifest), _sizes(state, base_model, image_size),
        _training(state), _results(state, facts), _samples(facts), _limits(state),
    ]  # fmt: skip
    return f"---\n{_header(state, base_model, facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def kind_of(dataset: str) -> str:
    """The kind of data set that a name belongs to, or every part of a mix: "demo", "flickr" or "coco"; else "own"."""
    names = [part.name for part in parse_mix(dataset)] if is_mix(dataset) else [dataset]
    known = ("demo", "flickr", "coco")
    kinds = {next((kind for kind in known if name.lower().startswith(kind)), "own") for name in names}
    return kinds.pop() if len(kinds) == 1 else "own"


def _header(state: Mapping[str, Any], base_model: str | None, facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = state["config"]["DATASET"]
    results = [
        EvalResult(
            task_type="image-to-text", task_name="Image captioning", dataset_type=_slug(facts.manifest, dataset),
            dataset_name=dataset, dataset_split=split, metric_type=_TYPES[key], metric_name=_METRICS[key],
            metric_value=round(100 * value, 1),
        )
        for split, scores in [_best_known(facts)]
        for key, value in scores.items()
        if key in _TYPES
    ]  # fmt: skip
    return ModelCardData(
        library_name="nanocaption", pipeline_tag="image-to-text", license="other", license_name="terms-of-its-data",
        language="en" if kind_of(dataset) != "own" else None, datasets=[_slug(facts.manifest, dataset)],
        base_model=base_model, metrics=[*dict.fromkeys(result.metric_type for result in results)] or None,
        tags=["image-captioning"], model_name=facts.name.rpartition("/")[2], eval_results=results or None,
    ).to_yaml()  # fmt: skip


def _best_known(facts: Facts) -> tuple[str, Mapping[str, float]]:
    """(split, scores by name): of the evaluation, else of the validation, else none."""
    if facts.scores:
        return facts.scores["split"], facts.scores["corpus"]
    row = facts.validation or {}
    return "val", {key: row[key] for key in _METRICS if row.get(key) is not None}


def _slug(manifest: Mapping[str, Any] | None, dataset: str) -> str:
    source = str((manifest or {}).get("source", ""))
    return source.removesuffix(_FROM_HUB) if source.endswith(_FROM_HUB) else dataset


_FROM_HUB = " on the Hugging Face Hub"  # how prepare_dataset ends such a source


def _what(state: Mapping[str, Any], facts: Facts) -> str:
    config = state["config"]
    seen = {"demo": "drawn scenes", "flickr": "photographs", "coco": "photographs"}.get(kind_of(config["DATASET"]))
    about = f"{seen or 'pictures'} of the data set {config['DATASET']}"
    return (
        f"# {facts.name.rpartition('/')[2]}\n\n"
        f"An image captioner: a picture in, one sentence out. {_encoder(state)} reads the picture, and a Transformer "
        f"decoder with a byte-level BPE tokenizer of its own writes the caption, token by token, with attention to all "
        f"patches. Trained on {about} with nanoCaption."
    )


def _use(name: str) -> str:
    return (
        "## Use\n\nWith nanoCaption's files on Python's path, and torch, transformers, tokenizers, safetensors and "
        "Pillow installed:\n\n```python\nfrom model import ImageToTextModel\n\n"
        f'model = ImageToTextModel.from_pretrained("{name}")\nprint(model.caption("photo.jpg"))\n```\n\n'
        f"From the command line: `nanocaption caption photo.jpg --checkpoint {name}`. `transformers.AutoTokenizer` and "
        "`AutoImageProcessor` load the tokenizer and the preprocessing; transformers itself cannot run the model."
    )


def _data(state: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> str:
    dataset, cutoff = state["config"]["DATASET"], state["config"]["DATA_CUTOFF"]
    if manifest is None:
        return (
            f"## Data and its terms\n\nTrained on the data set {dataset}. Its description was not at hand when this "
            "card was written, so its size and terms are unknown here; ask whoever made the model before passing it on."
        )
    source = str(manifest.get("source", "unknown"))
    if source == "demo_set":
        origin = "drawn by nanoCaption's own code"
    elif source.endswith(_FROM_HUB):
        commit = manifest.get("commit")
        origin = f"[{source}](https://huggingface.co/datasets/{_slug(manifest, dataset)})"
        origin += f", commit {commit}" if commit else ""
    elif manifest.get("layout") == "mix":
        origin = f"a mix of the sets {source}"
    else:
        origin = f"a folder of the person who trained it (layout: {manifest.get('layout', 'unknown')})"
    lines = [f"- source: {origin}", f"- terms: {manifest.get('licence', 'unknown')}"]
    lines += [
        f"- {split}: {count['images']:,} images, {count['captions']:,} captions"
        for split, count in manifest["counts"].items()
    ]
    if cutoff is not None:
        lines.append(f"- only the first {cutoff:,} images of each split were used")
    about = "\n".join(lines)
    return (
        f"## Data and its terms\n\nData set {dataset}:\n\n{about}\n\nThe weights were learned from these pictures and "
        "captions: use them, and pass them on, only as those terms allow. No picture is in this repository."
    )


def _sizes(state: Mapping[str, Any], base_model: str | None, image_size: int) -> str:
    config, weights = state["config"], state["model_state_dict"]
    encoder = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("encoder."))
    rest = sum(tensor.numel() for tensor in weights.values()) - encoder
    frozen = "frozen" if config["FREEZE_ENCODER"] else "trained along"
    start = f"pretrained, {base_model or 'from a folder'}; {frozen}" if config["ENCODER_MODEL_NAME"] else "from scratch"
    vocabulary = len(weights["decoder.embedding.weight"])
    rows = [
        ("encoder", f"{_encoder(state)}, {start}: {encoder:,} parameters"),
        ("decoder", f"depth {config['DECODER_LAYERS']}, width {config['DECODER_EMBED_DIM']}, "
                    f"{config['DECODER_HEADS']} heads: {rest:,} parameters with the map from the encoder"),
        ("vocabulary", f"{vocabulary:,} tokens, byte-level BPE trained on the training captions"),
        ("image size", f"{image_size} x {image_size} pixels"),
        ("longest caption", f"{config['MAX_SEQ_LEN']} tokens, start and end included"),
    ]  # fmt: skip
    return "## Sizes\n\n" + _table(("part", "size"), rows)


def _encoder(state: Mapping[str, Any]) -> str:
    tower = state["model_arguments"].get("encoder_config")
    if not tower:
        layers, width, patch = (state["config"][f"VIT_{name}"] for name in ("LAYERS", "EMBED_DIM", "PATCH_SIZE"))
        return f"A small ViT (depth {layers}, width {width}, {patch}-pixel patches)"
    name = {"vit": "ViT", "deit": "DeiT", "dinov2": "DINOv2", "clip": "CLIP", "siglip": "SigLIP"}
    kind = name.get(tower["model_type"].removesuffix("_vision_model"), tower["model_type"])
    return (
        f"A {kind} vision tower (depth {tower.get('num_hidden_layers')}, width {tower.get('hidden_size')}, "
        f"{tower.get('patch_size')}-pixel patches)"
    )


def _training(state: Mapping[str, Any]) -> str:
    environment, schedule = state.get("environment", {}), state.get("scheduler_state_dict", {})
    names = ("warmup_steps", "total_steps", "torch", "device", "precision", "processes")
    unknown = {**dict.fromkeys(names, "unknown"), "written_by": state.get("written_by", "nanoCaption")}
    config = dict(state["config"])
    if config.get("ENCODER_LEARNING_RATE") is None:
        config["ENCODER_LEARNING_RATE"] = "0 (frozen)" if config["FREEZE_ENCODER"] else "the same"
    values = {**unknown, **environment, **schedule, **config, "epoch": state["epoch"], "step": state["step"]}
    plain = {name: _plain(value) for name, value in values.items()}
    rows = [(name, text.format_map(plain)) for name, text in _TRAINING]
    return "## Training\n\n" + _table(("setting", "value"), rows)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return ("yes" if value else "no") if isinstance(value, bool) else value


def _results(state: Mapping[str, Any], facts: Facts) -> str:
    scores, row = facts.scores, facts.validation
    if scores:
        people = scores.get("leave_one_out", {})
        rows = []
        for key, value in scores["corpus"].items():
            low, high = scores["intervals"][key]
            own = f"{100 * people[key]:.1f}" if key in people else ""
            rows.append((_METRICS.get(key, key), f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", own))
        table = _table(("metric", "score", "95 % interval", "people"), rows)
        return (
            f"## Results\n\nOn the split {scores['split']}, {scores['images']:,} images; one training run. Scores are "
            "times 100, computed as pycocoevalcap computes them; the interval is a bootstrap over the images. People: "
            f"what the reference captions score against each other.\n\n{table}\n\nSignature of these scores; two "
            f"compare where it is equal up to the model:\n\n```\n{scores['signature']}\n```"
        )
    if row:
        figures = [f"loss {row['val_loss']:.4f} per token"]
        figures += [f"{_METRICS[key]} {100 * row[key]:.1f}" for key in _TYPES if row.get(key) is not None]
        images = state["config"].get("VALIDATION_SCORE_IMAGES")
        greedy = f" (greedy captions of at most {images} images)" if len(figures) > 1 else ""
        return (
            "## Results\n\nNot evaluated on a test split yet. At the validation during the training: "
            f"{', '.join(figures)}{greedy}. These figures chose the checkpoint, so they flatter it."
        )
    return "## Results\n\nNot evaluated, and saved without a validation: nothing is known of its quality."


def _samples(facts: Facts) -> str:
    if not facts.samples:
        return "## Samples\n\nNo captions were kept with this checkpoint."
    rows = [(_cell(sample["file_name"]), _cell(sample["caption"])) for sample in facts.samples[:3]]
    return f"## Samples\n\nPictures of the split {facts.samples_split}, not chosen by their captions:\n\n" + _table(
        ("picture", "caption"), rows
    )


def _limits(state: Mapping[str, Any]) -> str:
    return f"## Limits\n\n{_LIMITS[kind_of(state['config']['DATASET'])]}\n\n{_ALWAYS}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
