"""One self-contained HTML page of scores and captions."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from nanocaption.base.files import write_file
from nanocaption.data.pictures import data_uri, thumbnail
from nanocaption.data.shards import Packed
from nanocaption.metrics.files import FEW_IMAGES
from nanocaption.score import report_html
from nanocaption.score.curves import Rows
from nanocaption.score.report_html import GalleryRow, fill, parts
from nanocaption.score.scoring import Scores

MAX_IMAGES = 200
T = TypeVar("T")


class Words(NamedTuple):
    """What a page calls things."""

    what: str = "Captions"
    one: str = "caption"
    others: str = "pictures"
    words: str = "captions, references"
    metric: str = "CIDEr"


CAPTIONS = Words()


def write_report(
    path: Path | str, *, title: str, scores: Scores, predictions: Sequence[GalleryRow],
    images_dir: Path | str, history: Rows = (), max_images: int = MAX_IMAGES,
    places: Mapping[str, Path | Packed] | None = None,
) -> None:  # fmt: skip
    """Write one self-contained HTML page (no network, light and dark): scores, curves, gallery of captions.

    scores: fractions (0.61 is shown as 61.0). predictions: at least one; their file names lie below images_dir, or
    where `places` says. Of more than max_images rows the best, the worst and evenly spaced ones between are shown, and
    the page says so.
    history: rows of log.jsonl, for the curves. Text of the data is escaped. The file appears complete or not at all.

    Raises ValueError for shown pictures that are missing or unreadable.
    """
    total = len(predictions)
    few = ": few, so these scores are rough, CIDEr above all" if scores.get("images", total) < FEW_IMAGES else ""
    write_page(
        path, shown_rows(predictions, max_images), total, places or Path(images_dir), title=title,
        subtitle=f"{scores.get('images', total)} {scores.get('split', 'captioned')} pictures{few}",
        signature=scores.get("signature", ""),
        scores=report_html.scores_html(scores),
        charts=report_html.charts_html(history, predictions),
        confusions=report_html.confusions_html(scores.get("confusions", {})),
    )  # fmt: skip


def write_page(
    path: Path | str, shown: Sequence[tuple[int, GalleryRow]], total: int,
    places: Mapping[str, Path | Packed] | Path, words: Words = CAPTIONS, leads: Sequence[str] = (), **parts_of: str,
) -> None:  # fmt: skip
    """The page with these cards, (rank, row) of `total`, and the other parts of the template as they are given.

    places: of each picture, or the folder of all. leads: a text for each card before its caption.
    """
    names = [row["file_name"] for _, row in shown]
    small = [thumbnail(places / name if isinstance(places, Path) else places[name]) for name in names]
    aspects = sorted(picture.width / picture.height for picture in small)
    script = parts()["page"].partition("<script>")[2].partition("</script>")[0]
    page = fill(
        "page",
        # The page's policy runs this one script and nothing else, should an escape ever be forgotten.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **words._asdict(),
        **parts_of,
        counted=f"all {total:,} {words.others}" if len(shown) == total else
                f"{len(shown):,} of {total:,} {words.others}: the best, the worst, and evenly spaced between",
        hint=" Point at a word, tap it or move there with Tab and the arrow keys, to see where the model looked."
             if any(row.get("attention") for _, row in shown) else "",
        aspect=f"{min(max(aspects[len(aspects) // 2], 0.75), 1.5):.3f}",
        cards="\n".join(report_html.card_html(row, data_uri(picture), rank, total, words.metric, lead)
                        for (rank, row), picture, lead in zip(shown, small, leads or [""] * len(shown), strict=True)),
    )  # fmt: skip
    write_file(Path(path), page.encode("utf-8", "backslashreplace"))


def shown_rows(predictions: Sequence[GalleryRow], max_images: int = MAX_IMAGES) -> list[tuple[int, GalleryRow]]:
    """(rank, row) of what write_report puts into the gallery, best CIDEr first, equals by file name.

    To the rows "attention" may be added.
    """
    ranked = sorted(predictions, key=lambda row: (-row["cider"], row["file_name"]))
    return choose_rows(list(enumerate(ranked, start=1)), max_images)


def choose_rows(ranked: list[T], limit: int) -> list[T]:
    """At most `limit` of the rows, in order: a third from the top, a third from the end, some between."""
    if len(ranked) <= limit:
        return ranked
    ends = limit // 3
    middle, count = ranked[ends:len(ranked) - ends], limit - 2 * ends
    spread = [middle[(2 * i + 1) * len(middle) // (2 * count)] for i in range(count)]
    return ranked[:ends] + spread + ranked[len(ranked) - ends:]
