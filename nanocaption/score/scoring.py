"""Scores of one caption per picture, and what stands beside them."""

from typing import Any

from nanocaption import demo_set, metrics


def score_captions(
    records: list[dict[str, Any]],
    captions: list[str],
    people: bool = True,
    training: list[str] | None = None,
    meteor: bool = False,
    spice: bool = False,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Scores of one caption per record against its references: (scores.json content, per-image values in order).

    "leave_one_out", with `people`, is what the references score against each other; "truth" and "confusions" are
    there for drawn scenes; `training` gives the share of captions that stand in it.
    """
    references = {record["file_name"]: record["captions"] for record in records}
    candidates = {record["file_name"]: caption for record, caption in zip(records, captions, strict=True)}
    measured = metrics.measure(metrics.prepare_references(references), candidates, meteor, spice)
    corpus, per_image = metrics.total(measured)
    text = metrics.text_statistics(captions, training=training)._asdict()
    scores: dict[str, Any] = {
        "corpus": corpus, "intervals": metrics.intervals(measured), "images": len(records),
        "text": {name: value for name, value in text.items() if value is not None},
    }  # fmt: skip
    if people and all(len(captions) > 1 for captions in references.values()):
        scores["leave_one_out"] = metrics.leave_one_out(references)
    if all("scene" in record for record in records):
        scenes = [record["scene"] for record in records]
        scores["truth"] = demo_set.total_truth(captions, scenes)
        scores["confusions"] = demo_set.total_confusions(captions, scenes)
    return scores, [per_image[record["file_name"]] for record in records]
