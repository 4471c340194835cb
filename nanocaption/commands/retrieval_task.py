"""evaluate.py --task retrieval: find the picture of a caption and the captions of a picture, and say how well.

Writes into a folder beside the checkpoint: retrieval.json (the scores of every ranking, with intervals and signature),
scores.npy (pictures x captions, float32, of the last ranking; scores_<ranking>.npy of the others), captions.json (the
captions of its columns with the number of their picture) and report.html.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from nanocaption.base import devices
from nanocaption.base.files import whole, write_atomically
from nanocaption.base.settings import Settings
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.prepared import Record
from nanocaption.data.shard_index import paths_of
from nanocaption.score import results, retrieval
from nanocaption.score.retrieval_page import write_page
from nanocaption.score.split import Split, load_split
from nanocaption.use import ranking
from nanocaption.use.captioning import split_images
from nanocaption.use.load import Loaded, load_models, trained_by_reward
from nanocaption.use.ranking import Chosen, Pairs

T = TypeVar("T")
RANKINGS = ("likelihood", "head", "both")


class Ranking(NamedTuple):
    """One way to score all pairs."""

    scores: np.ndarray  # float32 (images, captions)
    how: str  # for the signature
    seconds: float
    facts: Mapping[str, object] = {}  # noqa: RUF012  # read only


def main(arguments: argparse.Namespace, given: Settings, paths: Sequence[Path]) -> Path:
    """Rank, score, write and print, as the flags ask; returns the results folder. All processes together.

    SystemExit or ValueError with one line for what cannot be ranked, before any long work.
    """
    if len(paths) > 1:
        raise SystemExit("--task retrieval ranks by one model: give one checkpoint")
    devices.start(devices.pick_device(given.DEVICE, devices.local_rank()).type)
    loaded = load_models(paths, given)
    wanted = rankings_of(arguments.by, has_head(loaded), str(paths[0]))
    split = load_split(loaded.settings, arguments.split, loaded.states[0]["config"])
    pairs = ranking.pairs_of(loaded, split.records, split_images(loaded, split))
    tell(loaded, split, pairs, paths[0], wanted)
    made_by = f"{paths[0].name} {results.digest(paths[0])}{' scst:eos' * trained_by_reward(loaded.states[0])}"
    precision = str(devices.pick_dtype(loaded.settings.PRECISION, loaded.device)).removeprefix("torch.")
    key = results.digest(made_by, precision, split.captions_sha256, split.folder.name, split.name, len(split.records))
    place = paths[0].parent / f"eval_{split.name}_epoch{loaded.states[0]['epoch']}_retrieval"
    (output,) = devices.gather([Path(arguments.output) if arguments.output else results.folder_for(place, key)]
                               if devices.rank() == 0 else [])  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    pairs = pairs._replace(images=split_images(loaded, split, cached=True))
    found = rank_all(loaded, split, pairs, wanted, output, key)
    if devices.rank() == 0:
        finish(found, split, pairs, output, key, f"{precision} | {made_by}")
    return output


def has_head(loaded: Loaded) -> bool:
    return loaded.models[0].retrieval is not None


def rankings_of(asked: str | None, head: bool, name: str) -> list[str]:
    """Those that --by names, or all that the checkpoint can. SystemExit with one line where one is none of these."""
    if asked is None:
        return list(RANKINGS) if head else ["likelihood"]
    words = [word.strip() for word in asked.split(",")]
    if unknown := [word for word in words if word not in RANKINGS]:
        raise SystemExit(f"--by {asked}: {unknown[0]!r} is no ranking; there are {', '.join(RANKINGS)}")
    if not head and set(words) != {"likelihood"}:
        raise SystemExit(f"--by {asked}: {name} has no contrastive head; train one on it with --objective contrastive "
                         f"--init-checkpoint-path {name}, or rank --by likelihood")  # fmt: skip
    return [word for word in RANKINGS if word in words]


def tell(loaded: Loaded, split: Split, pairs: Pairs, path: Path, wanted: Sequence[str]) -> None:
    """Print what is ranked, and what a reader of the scores has to know."""
    images, captions, longest = len(pairs.images), len(pairs.token_ids), loaded.settings.MAX_SEQ_LEN
    notes = [f"{path}: ranking {images:,} pictures and {captions:,} captions of {split.folder.name}/{split.name} by "
             f"{', '.join(wanted)} on {loaded.device}"]  # fmt: skip
    if left := pairs.queries.left_out:
        notes.append(f"Note: the first {retrieval.CAPTIONS} captions of each picture are taken, {left:,} are left out")
    if same := retrieval.repeated(pairs.queries):
        notes.append(f"Note: {same:,} captions say word for word what one of another picture says: none can tell them "
                     "apart, and at best half of them rank first")  # fmt: skip
    if cut := sum(len(ids) == longest and ids[-1] != 2 for ids in pairs.token_ids):
        notes.append(f"Note: {cut:,} captions are cut to MAX_SEQ_LEN = {longest} tokens")
    if trained_by_reward(loaded.states[0]) and set(wanted) != {"head"}:
        notes.append("Note: trained by rewards, the captioner gives few captions any probability: rank by the "
                     "checkpoint that self-critical training began with")  # fmt: skip
    for note in notes:
        devices.console(note)


def rank_all(
    loaded: Loaded, split: Split, pairs: Pairs, wanted: Sequence[str], output: Path, key: str
) -> dict[str, Ranking]:
    """The wanted rankings. Likelihoods are kept in `output` under `key` until all is done: a second start goes on."""
    head = None
    took: dict[str, float] = {}
    found = {}
    if "head" in wanted or "both" in wanted:
        head = timed(took, "head", lambda: ranking.head_scores(loaded, pairs))
        found["head"] = Ranking(head, "contrastive head", took["head"])
    if wanted == ["head"]:
        return found
    marginal = timed(took, "marginal", lambda: marginal_of(loaded, pairs.token_ids))
    everything = None
    if "likelihood" in wanted:
        kept = kept_rows(output, f"likelihood-{key}.npy", (len(pairs.images), len(pairs.token_ids)))
        everything = timed(took, "likelihood", lambda: ranking.likelihoods(
            loaded, pairs.images, pairs.token_ids, "likelihood", kept))  # fmt: skip
    chosen = timed(took, "choosing", lambda: choose(loaded, split, everything, marginal, head))
    base = took["marginal"] + took["choosing"]
    prior = np.zeros(len(pairs.token_ids), np.float32) if marginal is None else marginal
    number = len(training_records(loaded))
    over = f"marginal over {number} training pictures" if number else "no marginal: no training pictures"
    if everything is not None:
        how = f"likelihood, alpha {chosen.alpha:g} ({chosen.where}), {over}"
        found["likelihood"] = Ranking(everything - chosen.alpha * prior, how, base + took["likelihood"],
                                      {"alpha": chosen.alpha})  # fmt: skip
    if "both" in wanted:
        assert head is not None
        k = loaded.settings.K_TEST
        picked = ranking.candidates(head, k)
        if everything is None:
            kept = kept_rows(output, f"both-{key}-{k}.npy", head.shape)
            some = timed(took, "both", lambda: ranking.some_likelihoods(loaded, pairs, picked, "re-ranking", kept))
        else:
            some = np.where(picked, everything, np.nan)
        how = (f"contrastive head, its first {min(k, len(pairs.images))} re-ranked by likelihood, weight "
               f"{chosen.weight:g}, alpha {chosen.mixed_alpha:g} ({chosen.where}), {over}")  # fmt: skip
        facts = {"k_test": k, "weight": chosen.weight, "alpha": chosen.mixed_alpha, "pairs": int(picked.sum()),
                 "stage_1": stage_1(head, pairs, k)}  # fmt: skip
        if k > len(pairs.images):
            devices.console(f"Note: K_TEST = {k}, but there are {len(pairs.images)} pictures: all are ranked anew")
        found["both"] = Ranking(ranking.reranked(head, some, prior, chosen), how,
                                took["head"] + base + took.get("both", took.get("likelihood", 0.0)), facts)  # fmt: skip
    return {name: found[name] for name in wanted}


def timed(took: dict[str, float], name: str, work: Callable[[], T]) -> T:
    """work(), whose seconds go into `took` under the name."""
    start = time.perf_counter()
    result = work()
    took[name] = time.perf_counter() - start
    return result


def kept_rows(output: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The rows in this file of the results folder, written as they are made; NaN where there are none yet."""
    path = output / name
    if devices.rank() == 0 and not path.is_file():
        with whole(path) as made:
            rows = np.lib.format.open_memmap(made, "w+", np.float32, shape)
            rows[:] = np.nan
            rows.flush()
    devices.barrier()
    return np.lib.format.open_memmap(path, "r+")


def marginal_of(loaded: Loaded, token_ids: Sequence[Sequence[int]]) -> np.ndarray | None:
    """log p(caption) over training pictures; None, told, where these are not on this disk."""
    records = training_records(loaded)
    if not records:
        devices.console(f"Note: the training pictures are not in {ranking.trained_on(loaded)} (--data-dir): without "
                        "them the short common captions win wherever a caption is looked for")  # fmt: skip
        return None
    return ranking.log_marginal(loaded, token_ids, images_of(loaded, records))


def training_records(loaded: Loaded) -> list[Record]:
    """Of the pictures that the marginal is estimated from."""
    splits = loaded.states[0]["config"].get("TRAIN_SPLITS", ("train",))
    return ranking.some_pictures(loaded, splits, ranking.MARGINAL)


def images_of(loaded: Loaded, records: Sequence[Record]) -> ImageTextDataset:
    """Pictures of the set that the model was trained on."""
    folder = ranking.trained_on(loaded) / "images"
    return ImageTextDataset(records, folder, [[] for _ in records], loaded.models[0].image_spec)


def choose(
    loaded: Loaded, split: Split, everything: np.ndarray | None, marginal: np.ndarray | None, head: np.ndarray | None
) -> Chosen:
    """alpha and weight, on the first pictures of val."""
    splits = loaded.states[0]["config"].get("VAL_SPLITS", ("val",))
    records = ranking.some_pictures(loaded, splits, ranking.CHOSEN_ON, first=True)
    if len(records) < 2 or marginal is None:
        return ranking.without_val(training=marginal is not None)
    pairs = ranking.pairs_of(loaded, records, images_of(loaded, records))
    images, captions = len(records), len(pairs.token_ids)
    where = f"chosen on {images} pictures of {'+'.join(splits)}"
    own = [record["file_name"] for record in split.records[:images]] == [record["file_name"] for record in records]
    if own and split.folder == ranking.trained_on(loaded) and everything is not None:  # val itself is what is ranked
        part = (slice(images), slice(captions))
        return ranking.choose(everything[part], marginal[:captions], None if head is None else head[part],
                              pairs.queries.image_of_caption, where)  # fmt: skip
    found = ranking.likelihoods(loaded, pairs.images, pairs.token_ids, "choosing alpha on val")
    prior = marginal_of(loaded, pairs.token_ids)
    assert prior is not None
    heads = None if head is None else ranking.head_scores(loaded, pairs)
    return ranking.choose(found, prior, heads, pairs.queries.image_of_caption, where)


def stage_1(head: np.ndarray, pairs: Pairs, k: int) -> dict[str, float]:
    """How often the right one is among the head's first k, in per cent: more than that no re-ranking can find."""
    ranks = retrieval.ranks_of(head, pairs.queries.image_of_caption)
    return {f"{way}_R@{k}": 100 * float(np.mean(own <= k)) for way, own in ranks._asdict().items()}


# --- Scores and files ---


def finish(
    found: Mapping[str, Ranking], split: Split, pairs: Pairs, output: Path, key: str, made_by: str
) -> None:
    """Score all rankings, print the table, write the results folder."""
    owner = pairs.queries.image_of_caption
    rows: dict[str, dict[str, object]] = {}
    for name, one in found.items():
        ranks = retrieval.ranks_of(one.scores, owner)
        rows[name] = {
            "scores": retrieval.scores_of(ranks), "intervals": retrieval.intervals(ranks, owner), **one.facts,
            "seconds": round(one.seconds, 1), "signature": f"{protocol(split, pairs)} | {one.how} | {made_by}",
        }  # fmt: skip
        if len(pairs.images) == retrieval.FOLDS * retrieval.FOLD:
            rows[name]["five_folds_of_1000"] = retrieval.fold_scores(one.scores, owner)
    print(table(rows))
    *_, last = found
    for name, one in found.items():
        file_name = "scores.npy" if name == last else f"scores_{name}.npy"
        with whole(output / file_name, sync=True) as made, made.open("wb") as file:
            np.save(file, one.scores)
    captions = [{"image": int(image), "file_name": split.records[image]["file_name"], "caption": text}
                for image, text in zip(owner, pairs.queries.texts, strict=True)]  # fmt: skip
    write_atomically(output / "captions.json", json.dumps(captions, indent=1, ensure_ascii=False))
    places = paths_of(split.folder / "images", split.records)
    write_page(output / "report.html", split, places, pairs.queries, found[last].scores, rows, last)
    content = {"dataset": split.folder.name, "split": split.name, "key": key, "images": len(pairs.images),
               "captions": len(owner), "rankings": rows}  # fmt: skip
    write_atomically(output / "retrieval.json", json.dumps(content, indent=1, ensure_ascii=False))
    results.drop_kept(output)
    print(f"\nscores and the page of hits and misses: {output}/ (open {output / 'report.html'})")


def protocol(split: Split, pairs: Pairs) -> str:
    """What two recalls must share: the set, how many pictures and captions, and whose captions."""
    each = sorted(set(np.bincount(pairs.queries.image_of_caption).tolist()))
    captions = str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}"
    return (f"{split.folder.name}/{split.name} {len(pairs.images):,} pictures, {len(pairs.token_ids):,} captions "
            f"({captions} each), captions {split.captions_sha256[:12]}, expected rank at ties")  # fmt: skip


def table(rows: Mapping[str, Mapping]) -> str:
    """The scores as lines of text, in per cent, and the signatures."""
    lines = [f"\n{'':12}{'image to text':<34}{'text to image':<34}{'mean':>6}   seconds",
             f"{'':12}" + f"{'R@1 [95 %]':<18}{'R@5':>6}{'R@10':>6}  " * 2]  # fmt: skip
    for name, row in rows.items():
        scores, intervals, cells = row["scores"], row["intervals"], ""
        for way in ("i2t", "t2i"):
            low, high = intervals[f"{way}_R@1"]
            first = f"{scores[f'{way}_R@1']:.1f} [{low:.1f}-{high:.1f}]"
            cells += f"{first:<18}{scores[f'{way}_R@5']:6.1f}{scores[f'{way}_R@10']:6.1f}    "
        lines.append(f"{name:12}{cells}{scores['r_mean']:6.1f}   {row['seconds']:.0f}")
        if "stage_1" in row:
            shown = ", ".join(f"{key} {value:.1f}" for key, value in row["stage_1"].items())
            lines.append(f"{'':12}the head's first {row['k_test']} hold the right one: {shown} %")
        if folds := row.get("five_folds_of_1000"):
            lines.append(f"{'':12}mean of five folds of 1,000: {retrieval.told(folds)}")
    medians = [f"{name} {row['scores']['i2t_median_rank']:g} and {row['scores']['t2i_median_rank']:g}"
               for name, row in rows.items()]  # fmt: skip
    return "\n".join([*lines, f"median rank, image to text and text to image: {'; '.join(medians)}",
                      *(str(row["signature"]) for row in rows.values())])  # fmt: skip
