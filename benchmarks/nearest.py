"""Floors for a captioner: captions that the training set has already, found by a model's contrastive head.

    python benchmarks/nearest.py CHECKPOINT [--split val] [--neighbours 20] [--output FOLDER] [settings as flags]

nearest caption   the caption of the whole training set whose vector is nearest to the picture's
nearest picture   the first caption of the nearest training picture
consensus         of all captions of the nearest training pictures the one that agrees most with the others, by CIDEr
                  (Devlin et al. 2015, arXiv 1505.04467)

A captioner that does not beat these has learnt to look up. Writes predictions_<floor>.json, which
`python evaluate.py --predictions` scores with intervals; prints BLEU-4 and CIDEr.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nanocaption import metrics  # noqa: E402
from nanocaption.base.files import write_atomically  # noqa: E402
from nanocaption.base.settings import load_settings, take_settings  # noqa: E402
from nanocaption.data.caption_text import as_trained  # noqa: E402
from nanocaption.data.dataset import ImageTextDataset  # noqa: E402
from nanocaption.data.inputs import augmentation, take_from_caches  # noqa: E402
from nanocaption.data.prepared import Record, load_records  # noqa: E402
from nanocaption.data.tokenizer import encode_batch  # noqa: E402
from nanocaption.score.predictions import image_ids  # noqa: E402
from nanocaption.score.scoring import score_captions  # noqa: E402
from nanocaption.score.split import load_split  # noqa: E402
from nanocaption.use.captioning import split_images  # noqa: E402
from nanocaption.use.load import Loaded, find_checkpoint, load_models  # noqa: E402
from nanocaption.use.ranking import image_vectors, text_vectors, trained_on  # noqa: E402


def main(argv: list[str]) -> None:
    flags, rest = take_settings(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--split", default="val")
    parser.add_argument("--neighbours", type=int, default=20, help="training pictures whose captions vote [20]")
    parser.add_argument("--output", type=Path, default=Path())
    a = parser.parse_args(rest)
    loaded = load_models([find_checkpoint(a.checkpoint, "")], load_settings(flags))
    if loaded.models[0].retrieval is None:
        raise SystemExit(f"{a.checkpoint} has no contrastive head: its vectors are what is near here")
    split = load_split(loaded.settings, a.split, loaded.states[0]["config"])
    queries = image_vectors(loaded, split_images(loaded, split, cached=True))
    for name, texts in floors(loaded, queries, a.neighbours).items():
        corpus = score_captions(split.records, texts, people=False)[0]["corpus"]
        print(f"{name:<17} BLEU-4 {100 * corpus['Bleu_4']:.1f}, CIDEr {100 * corpus['CIDEr']:.1f}", flush=True)
        rows = [{"image_id": i, "caption": text} for i, text in zip(image_ids(split.records), texts, strict=True)]
        write_atomically(a.output / f"predictions_{name.replace(' ', '_')}.json", json.dumps(rows, indent=1))


def floors(loaded: Loaded, queries: np.ndarray, neighbours: int) -> dict[str, list[str]]:
    """The captions of each floor for pictures with the vectors `queries` (pictures, width)."""
    records, images = training_set(loaded)
    texts = [text for record in records for text in record["captions"]]
    ids = encode_batch(loaded.tokenizer, texts, loaded.settings.MAX_SEQ_LEN)
    by_text = queries @ text_vectors(loaded, ids).T
    by_image = queries @ image_vectors(loaded, images).T
    order = np.argsort(-by_image, axis=1, kind="stable")
    near = [[text for place in row[:neighbours] for text in records[place]["captions"]] for row in order]
    training = metrics.prepare_references({n: record["captions"] for n, record in enumerate(records)})
    liking = metrics.consensus(training, near, near)
    return {
        "nearest caption": [texts[place] for place in by_text.argmax(1)],
        "nearest picture": [records[row[0]]["captions"][0] for row in order],
        "consensus": [own[int(votes.argmax())] for own, votes in zip(near, liking, strict=True)],
    }


def training_set(loaded: Loaded) -> tuple[list[Record], ImageTextDataset]:
    """The training pictures as they are, from the run's own cache where it has one."""
    settings, config, model = loaded.settings, loaded.states[0]["config"], loaded.models[0]
    settings = settings.on({name: config[name] for name in ("FEATURE_VIEWS", "RANDOM_FLIP", "RANDOM_CROP_AREA", "SEED")
                            if name in config})  # fmt: skip
    folder = trained_on(loaded)
    records, _ = as_trained(load_records(folder, settings.TRAIN_SPLITS, settings.DATA_CUTOFF), settings.CAPTION_CASE)
    images = ImageTextDataset(records, folder / "images", [[] for _ in records], model.image_spec)
    images.augment = augmentation(settings)
    if settings.FREEZE_ENCODER and settings.CACHE_FEATURES:
        take_from_caches(settings, folder, "train", images, model, loaded.device)
    return records, images


if __name__ == "__main__":
    main(sys.argv[1:])
