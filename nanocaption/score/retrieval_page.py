"""One self-contained HTML page of a retrieval: scores, hits and misses both ways, the hardest confusions."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nanocaption.base.files import write_file
from nanocaption.data.pictures import data_uri, thumbnail
from nanocaption.data.shards import Packed
from nanocaption.score import report_html, retrieval
from nanocaption.score.retrieval import Queries, Ranks
from nanocaption.score.split import Split

SHOWN, TOP = 24, 4  # queries each way; what is found of each
CONFUSIONS = 12
Picture = Callable[[int], str]  # the number of an image -> where a small one of it is loaded from
fill = functools.partial(report_html.fill, template="retrieval_template.html")


class Confusion(NamedTuple):
    """Two pictures that are taken for each other."""

    right: int
    found: int
    captions: list[int]  # of `right` for which `found` came first
    back: int  # captions of `found` for which `right` came first


def confusions(scores: np.ndarray, owner: np.ndarray, most: int = CONFUSIONS) -> list[Confusion]:
    """The pairs of pictures that most captions confuse, by how many captions find the other picture first.

    scores: (images, captions); owner: (captions,) the image of each.
    """
    first = scores.argmax(0)
    wrong = [(int(owner[c]), int(first[c]), c) for c in np.flatnonzero(first != owner)]
    captions: dict[tuple[int, int], list[int]] = {}
    for right, found, caption in wrong:
        captions.setdefault((right, found), []).append(caption)
    counts: Counter[frozenset[int]] = Counter(frozenset((right, found)) for right, found, _ in wrong)
    ranked = []
    for pair, _ in sorted(counts.items(), key=lambda item: (-item[1], sorted(item[0])))[:most]:
        a, b = sorted(pair)
        right, found = max((a, b), (b, a), key=lambda way: len(captions.get(way, ())))
        ranked.append(Confusion(right, found, captions[right, found], len(captions.get((found, right), ()))))
    return ranked


def sampled(ranks: np.ndarray, number: int) -> list[int]:
    """Queries to show: half of them hits and half misses, evenly spaced over all of each, hits first."""
    hits, misses = np.flatnonzero(ranks <= 1), np.flatnonzero(ranks > 1)
    half = number // 2
    found = []
    for own, room in ((hits, max(half, number - len(misses))), (misses, max(half, number - len(hits)))):
        take = min(room, len(own))
        found += [int(own[(2 * i + 1) * len(own) // (2 * take)]) for i in range(take)]
    return found


def write_page(
    path: Path, split: Split, places: Sequence[Path | Packed], queries: Queries, scores: np.ndarray,
    rows: Mapping[str, Mapping], shown: str,
) -> None:  # fmt: skip
    """Write the page of the ranking `shown`, whose scores (images, captions) are given; the table has all of `rows`.

    Text of the data is escaped; nothing is loaded from elsewhere, and there is no script. The file appears complete or
    not at all. Raises ValueError for pictures that cannot be read.
    """
    ranks = retrieval.ranks_of(scores, queries.image_of_caption)
    picture = functools.cache(lambda image: data_uri(thumbnail(places[image], 240)))
    page = fill(
        "page", title=f"Retrieval: {split.folder.name}/{split.name}", shown=shown,
        signatures="".join(fill("signature", text=row["signature"]) for row in rows.values()),
        scores="".join(score_row(name, row) for name, row in rows.items()),
        texts="".join(text_query(c, scores, ranks, queries, picture) for c in sampled(ranks.t2i, SHOWN)),
        images="".join(image_query(i, scores, ranks, queries, picture) for i in sampled(ranks.i2t, SHOWN)),
        confusions="".join(confusion_html(one, queries, picture)
                           for one in confusions(scores, queries.image_of_caption)),
    )  # fmt: skip
    write_file(path, page.encode("utf-8", "backslashreplace"))


def score_row(name: str, row: Mapping) -> str:
    scores, cells = row["scores"], ""
    for key in (*retrieval.NAMES, "r_mean"):
        low, high = row["intervals"][key]
        cells += fill("cell", value=f"{scores[key]:.1f}", spread=f"{low:.1f}–{high:.1f}")
    return fill("row", name=name, cells=cells, medians=f"{scores['i2t_median_rank']:g} / {scores['t2i_median_rank']:g}")


def text_query(caption: int, scores: np.ndarray, ranks: Ranks, queries: Queries, picture: Picture) -> str:
    """A caption and the pictures that come first, its own marked, or behind them where it is not among these."""
    own, order = int(queries.image_of_caption[caption]), np.argsort(-scores[:, caption], kind="stable")[:TOP].tolist()
    found = "".join(fill("found", picture=picture(i), kind="right" if i == own else "wrong") for i in order)
    if own not in order:
        found += fill("found", picture=picture(own), kind="right missed")
    return fill("text", caption=queries.texts[caption], rank=told_rank(ranks.t2i[caption]), found=found,
                kind=kind_of(ranks.t2i[caption]))  # fmt: skip


def image_query(image: int, scores: np.ndarray, ranks: Ranks, queries: Queries, picture: Picture) -> str:
    """A picture and the captions that come first, its own marked."""
    order = np.argsort(-scores[image], kind="stable")[: TOP + 1].tolist()
    lines = [(queries.texts[c], "right" if queries.image_of_caption[c] == image else "wrong") for c in order]
    if all(kind == "wrong" for _, kind in lines):
        own = np.flatnonzero(queries.image_of_caption == image)
        lines.append((queries.texts[own[scores[image, own].argmax()]], "right missed"))
    found = "".join(fill("line", text=text, kind=kind) for text, kind in lines)
    return fill("image", picture=picture(image), rank=told_rank(ranks.i2t[image]), found=found,
                kind=kind_of(ranks.i2t[image]))  # fmt: skip


def confusion_html(one: Confusion, queries: Queries, picture: Picture) -> str:
    back = f"; {one.back} the other way" if one.back else ""
    lines = "".join(fill("line", text=queries.texts[c], kind="wrong") for c in one.captions)
    count = f"{len(one.captions)} caption{'s' * (len(one.captions) > 1)} of the left find the right{back}"
    return fill("confusion", left=picture(one.right), right=picture(one.found), count=count, lines=lines)


def told_rank(rank: float) -> str:
    return f"rank {rank:g}"


def kind_of(rank: float) -> str:
    return "hit" if rank <= 1 else "miss"
