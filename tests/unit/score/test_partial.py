"""--only-predicted: the pictures that have a prediction, against their references, as COCO's users score a part."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

import evaluate
from nanocaption.commands.score import main as score_main
from nanocaption.data.prepared import load_records
from nanocaption.metrics.scores import NAMES
from tests.coco_scores import coco_scores
from tests.conftest import CUTOFF, run_command

score = partial(run_command, score_main)
pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")


def drawn(seed: int, images: int = 40) -> tuple[dict, dict]:
    rng = random.Random(seed)
    text = lambda: " ".join(rng.choices("abcdefghij", k=rng.choice([6, 7, 9])))  # noqa: E731
    ids = rng.sample(range(1000, 999999), images)
    return {i: [text() for _ in range(3)] for i in ids}, {i: text() for i in ids}


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def coco(references: dict) -> dict:
    rows = [(i, text) for i, texts in references.items() for text in texts]
    return {"images": [{"id": i} for i in references], "annotations": [
        {"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(rows)]}  # fmt: skip


def results(captions: dict) -> list[dict]:
    return [{"image_id": i, "caption": text} for i, text in captions.items()]


def test_a_part_is_scored_as_pycocoevalcap_does_with_the_ids_of_the_results(tmp_path, capsys):
    """Its users set params["image_id"] to the images of the results: document frequencies are those of the part."""
    references, captions = drawn(1)
    chosen = random.Random(2).sample(list(captions), 15)
    files = [write(tmp_path / "r.json", coco(references)),
             write(tmp_path / "p.json", results({i: captions[i] for i in chosen}))]  # fmt: skip
    assert score(files) == 1
    assert "25 of 40 images have no prediction, the first" in (told := capsys.readouterr().err)
    assert "--only-predicted" in told and told.count("\n") == 1
    assert score([*files, "--only-predicted", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    part = {i: texts for i, texts in references.items() if i in chosen}
    expected = coco_scores(part, {i: captions[i] for i in part})
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["images"] == 15 and "| 15 images of 40, those with a prediction |" in found["signature"]
    assert "15 of 40 images, 45 references" in capsys.readouterr().out
    # The control: document frequencies of all 40.
    whole = coco_scores(references, captions | {i: captions[i] if i in chosen else "" for i in captions})
    assert abs(whole["CIDEr"] * 40 / 15 - expected["CIDEr"]) > 0.01


def test_it_is_pycocoevalcap_with_its_own_coco_classes(tmp_path, capsys):
    coco_class = pytest.importorskip("pycocotools.coco").COCO
    evaluation = pytest.importorskip("pycocoevalcap.eval").COCOEvalCap
    references, captions = drawn(3)
    chosen = random.Random(4).sample(list(captions), 12)
    files = [write(tmp_path / "r.json", coco(references) | {"info": {}}),
             write(tmp_path / "p.json", results({i: captions[i] for i in chosen}))]  # fmt: skip
    listed = coco_class(files[0])
    scored = evaluation(listed, listed.loadRes(files[1]))
    ids = scored.cocoRes.getImgIds()
    texts = {i: [row["caption"] for row in listed.imgToAnns[i]] for i in ids}
    expected = coco_scores(texts, {i: scored.cocoRes.imgToAnns[i][0]["caption"] for i in ids})
    assert score([*files, "--only-predicted", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_with_all_predicted_the_flag_changes_nothing_and_strangers_are_refused_with_it(tmp_path, capsys):
    references, captions = drawn(5)
    files = [write(tmp_path / "r.json", coco(references)), write(tmp_path / "p.json", results(captions))]
    found = []
    for number, flags in enumerate(([], ["--only-predicted"])):
        assert score([*files, *flags, "--json", str(tmp_path / f"{number}.json")]) == 0
        found.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert found[0] == found[1] and " of 40" not in found[0]["signature"]
    capsys.readouterr()
    for strange in ({1: "a"}, captions | {1: "a"}):
        write(tmp_path / "p.json", results(strange))
        assert score([*files, "--only-predicted"]) == 1
        assert f"1 of {len(strange)} predictions are for images without references" in capsys.readouterr().err


def test_two_files_are_compared_over_the_pictures_that_both_have(tmp_path, capsys):
    references, captions = drawn(6)
    other, ids = drawn(7)[1], list(captions)
    second = dict(zip(ids, other.values(), strict=True))
    files = [write(tmp_path / "r.json", coco(references)), write(tmp_path / "a.json", results(captions)), "--compare",
             write(tmp_path / "b.json", results({i: second[i] for i in ids[10:]}))]  # fmt: skip
    write(tmp_path / "a.json", results({i: captions[i] for i in ids[:30]}))
    assert score(files) == 1 and "10 of 40 images have no prediction" in capsys.readouterr().err
    assert score([*files, "--only-predicted", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    both = ids[10:30]
    part = {i: references[i] for i in both}
    expected = [coco_scores(part, {i: side[i] for i in both}) for side in (captions, second)]
    assert found["images"] == 20 and "| 20 images of 40," in found["signature"]
    for name in NAMES:
        assert (found[name]["first"], found[name]["second"]) == pytest.approx([side[name] for side in expected])
    write(tmp_path / "a.json", results({i: captions[i] for i in ids[:10]}))
    assert score([*files, "--only-predicted"]) == 1
    assert "there is no image with references and a prediction in each file" in capsys.readouterr().err


def run(demo_data: Path, *flags: str) -> None:
    evaluate.main([*flags, "--data-dir", str(demo_data), "--data-cutoff", str(CUTOFF)])


def test_evaluate_scores_a_part_of_a_split_and_compares_parts(demo_data, tmp_path, capsys):
    records = load_records(demo_data / "demo", "test", CUTOFF)
    captions = {record["file_name"]: record["captions"][0] for record in records}
    part = {name: captions[name] for name in list(captions)[5:15]}
    theirs = write(tmp_path / "theirs.json", part)
    with pytest.raises(ValueError, match="14 of 24 images have no prediction.*--only-predicted"):
        run(demo_data, "--predictions", theirs)
    assert not list(tmp_path.glob("eval*"))
    run(demo_data, "--predictions", theirs, "--only-predicted")
    (folder,) = tmp_path.glob("eval_test_theirs")
    scores, predictions, references = (json.loads((folder / f"{name}.json").read_text())
                                       for name in ("scores", "predictions", "references"))  # fmt: skip
    assert scores["images"] == 10 and "| 10 images of 24, those with a prediction |" in scores["signature"]
    assert {row["file_name"]: row["caption"] for row in predictions} == part
    # Of a set without ids: places in the split, not in the part.
    assert [row["image_id"] for row in predictions] == [row["id"] for row in references["images"]] == list(range(5, 15))
    files = [str(folder / f"{name}.json") for name in ("references", "predictions")]
    assert score([*files, "--json", str(tmp_path / "o")]) == 0
    again = json.loads((tmp_path / "o").read_text())
    assert {name: again[name] for name in scores["corpus"]} == pytest.approx(scores["corpus"])

    run(demo_data, "--predictions", write(tmp_path / "all.json", captions))
    sides = ["--compare", str(tmp_path / "eval_test_all"), str(folder), "--json", str(tmp_path / "out.json")]
    for turned in (sides, [sides[0], sides[2], sides[1], *sides[3:]]):
        with pytest.raises(ValueError, match="14 images are in one of the two sets only"):
            evaluate.main(turned)
        evaluate.main([*turned, "--only-predicted"])
        found = json.loads((tmp_path / "out.json").read_text())
        assert "| 10 images of 24," in found["signature"]
        assert {name: row["first"] for name, row in found["differences"].items()} == pytest.approx(scores["corpus"])
        assert {row["difference"] for row in found["differences"].values()} == {0.0}
    shutil.rmtree(folder)
    with pytest.raises(SystemExit, match="--only-predicted goes with --predictions FILE or --compare"):
        evaluate.main(["--only-predicted"])
