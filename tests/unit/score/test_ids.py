"""Which picture a caption is of, whatever names it: int, digit text, zeros in front, file name, stem, COCO's name."""

import json
import time
import warnings
from functools import partial
from pathlib import Path

import pytest

from nanocaption.commands.score import main as score_main
from nanocaption.metrics import files
from nanocaption.score import results
from nanocaption.score.predictions import compare_sides, image_ids, match_references, read_predictions, read_side
from nanocaption.score.scoring import score_captions
from tests.conftest import run_command

score = partial(run_command, score_main)
IDS = [123456, 4, 391895, 2, 829718, 0]  # three of them could be places
CAPTIONS = {image: " ".join(f"w{image}{letter}" for letter in "abcde") for image in IDS}
NAMINGS = {
    "int": lambda image: image,
    "digit text": str,
    "padded text": lambda image: f"{image:012d}",
    "file name": lambda image: f"{image:012d}.jpg",
    "stem": lambda image: f"COCO_val2014_{image:012d}",
    "COCO file name": lambda image: f"COCO_val2014_{image:012d}.jpg",
    "path": lambda image: f"val2014/COCO_val2014_{image:012d}.jpg",
}
PERFECT = {"CIDEr": 10.0, "Bleu_4": 1.0, "ROUGE_L": 1.0}
pytestmark = pytest.mark.filterwarnings("ignore:.*images are few")


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def scores_of(folder: Path, references: object, predictions: object) -> dict[str, float]:
    out = folder / "out.json"
    pair = write(folder / "r.json", references), write(folder / "p.json", predictions)
    assert score([*pair, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def message(folder: Path, capsys, references: object, predictions: object, *flags: str) -> str:
    assert score([write(folder / "r.json", references), write(folder / "p.json", predictions), *flags]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if not line.startswith("warning: ")] == told[-1:], told
    return told[-1]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("own", ["int", "digit text", "padded text"])
@pytest.mark.parametrize("listed", ["COCO_val2014_{:012d}.jpg", "{:012d}.jpg", None])
def test_perfect_captions_are_perfect_under_every_naming(tmp_path, own, naming, listed):
    ids, name = NAMINGS[own], NAMINGS[naming]
    references = {"annotations": [{"image_id": ids(i), "caption": text} for i, text in CAPTIONS.items()]}
    records = [{"file_name": (listed or "{}.jpg").format(i), "image_id": ids(i), "captions": [text]}
               for i, text in CAPTIONS.items()]  # fmt: skip
    if listed:
        references["images"] = [{"id": r["image_id"], "file_name": r["file_name"]} for r in records]
    predictions = [{"image_id": name(i), "caption": text} for i, text in reversed(CAPTIONS.items())]
    found = scores_of(tmp_path, references, predictions)
    assert {key: found[key] for key in PERFECT} == pytest.approx(PERFECT, abs=1e-8)
    captions = read_predictions(tmp_path / "p.json", records)
    assert score_captions(records, captions)[0]["corpus"]["CIDEr"] == pytest.approx(10, abs=1e-8)
    # The control: each caption at another id.
    shuffled = [{"image_id": name(i), "caption": CAPTIONS[other]}
                for i, other in zip(IDS, IDS[1:] + IDS[:1], strict=True)]  # fmt: skip
    assert scores_of(tmp_path, references, shuffled)["CIDEr"] == 0


@pytest.mark.parametrize("spelled", [str, "{:05d}".format])
def test_the_ids_of_captions_and_of_images_in_one_file_may_be_of_two_types(tmp_path, spelled):
    references = {"images": [{"id": i} for i in IDS],
                  "annotations": [{"image_id": spelled(i), "caption": CAPTIONS[i]} for i in IDS]}  # fmt: skip
    assert scores_of(tmp_path, references, {str(i): text for i, text in CAPTIONS.items()})["CIDEr"] == pytest.approx(10)


def test_numbers_are_places_only_where_the_set_has_no_ids_and_that_is_said(tmp_path, capsys):
    path = Path(write(tmp_path / "p.json", [{"image_id": n, "caption": f"about {n}"} for n in (2, 0, 1)]))
    bare = [{"file_name": f"{name}.jpg", "captions": ["a"]} for name in ("x", "y", "z")]
    assert read_predictions(path, bare) == ["about 0", "about 1", "about 2"]
    assert "no ids of its own, so image_id is taken for the place in the split, from 0: 0 is x.jpg" in (
        capsys.readouterr().out)  # fmt: skip
    own = [record | {"image_id": image} for record, image in zip(bare, (1, "2", "000"), strict=True)]
    assert read_predictions(path, own) == ["about 1", "about 2", "about 0"] and capsys.readouterr().out == ""
    part = [own[0] | {"image_id": 700}, own[1], bare[2]]
    with pytest.raises(ValueError, match="2 of 3 predictions are for images without references, the first 0"):
        read_predictions(path, part)
    named = [{"image_id": n, "file_name": f"{name}.jpg", "caption": name} for n, name in enumerate("zyx")]
    assert read_predictions(Path(write(path, named)), bare) == ["x", "y", "z"] and capsys.readouterr().out == ""


def test_two_readings_are_refused_and_both_are_told(tmp_path, capsys):
    records = [{"file_name": f"{n:04d}.jpg", "image_id": n + 1, "captions": ["a"]} for n in (2, 1, 0, 3)]
    path = Path(write(tmp_path / "p.json", {"1": "x", "2": "y", "3": "z"}))
    with pytest.raises(ValueError, match=r"'1' may mean 0001.jpg \(by the number in its name\) or 0000.jpg \(by id\)"):
        read_predictions(path, records, only_predicted=True)
    # "4" can be no number of a file name, so all are ids.
    path = Path(write(path, {str(n): f"about {n}" for n in (1, 2, 3, 4)}))
    assert read_predictions(path, records) == ["about 3", "about 2", "about 1", "about 4"]
    folders = [{"file_name": f"{folder}/1.jpg", "captions": ["a"]} for folder in "ab"]
    with pytest.raises(ValueError, match=r"'1.jpg' may mean a/1.jpg \(by name\) or b/1.jpg \(by name\)"):
        read_predictions(Path(write(path, [{"file_name": "1.jpg", "caption": "x"}])), folders)
    records = [{"file_name": f"{name}.jpg", "image_id": n, "captions": ["a"]} for n, name in enumerate("xyz")]
    with pytest.raises(ValueError, match="3 of 3 predictions are for images without .* the first '0.jpg' .there is 'x"):
        read_predictions(Path(write(path, {f"{n}.jpg": "a" for n in range(3)})), records)  # whose numbers?
    two = {"annotations": [{"image_id": image, "caption": "a b"} for image in ("042", 42)]}
    assert "image_id '042' and 42 may be one image or two" in message(tmp_path, capsys, two, {"42": "a"})


def test_ids_that_are_other_texts_stay_other_images(tmp_path):
    """Listed as two images, "1" and "01" are two; and what is no ASCII digit is no number."""
    ids = ["1", "01", "²", "x1", "-1", "1.0"]
    found = scores_of(tmp_path, {image: [CAPTIONS[own]] for image, own in zip(ids, IDS, strict=True)},
                      {image: CAPTIONS[own] for image, own in zip(ids, IDS, strict=True)})  # fmt: skip
    assert found["CIDEr"] == pytest.approx(10) and found["images"] == 6


def test_results_are_written_with_the_text_ids_of_the_set_and_compare_with_int_ids(tmp_path):
    for kind, ids in (("text", [f"{i:06d}" for i in IDS]), ("int", IDS)):
        records = [{"file_name": f"{kind}{n}.jpg", "image_id": image, "captions": [CAPTIONS[own]]}
                   for n, (image, own) in enumerate(zip(ids, IDS, strict=True))]  # fmt: skip
        assert image_ids(records) == ids
        results.write_results(tmp_path / kind, records, list(CAPTIONS.values()), {})
        assert [row["image_id"] for row in json.loads((tmp_path / kind / "predictions.json").read_text())] == ids
    sides = map(read_side, (tmp_path / "text", tmp_path / "int"))
    differences, references, images = compare_sides(*sides, meteor=False, spice=False)
    assert differences["CIDEr"].first == differences["CIDEr"].second == pytest.approx(10)
    assert len(references) == images == 6
    assert image_ids([{"image_id": "1"}, {"image_id": 1}]) == [0, 1]  # one id twice is none
    with pytest.raises(ValueError, match="image_id must be a number or a string, and a whole number, got 4.0"):
        files.read_predictions(Path(write(tmp_path / "p.json", [{"image_id": 4.0, "caption": "a"}])))


REFERENCES = {"1": ["a dog runs", "the dog"], "2": ["a cat"]}


@pytest.mark.parametrize(
    ("references", "predictions", "told"),
    [
        ({"1": "a", "2": "b"}, REFERENCES, "but '1' has 'a'; if these are predictions, name the references first"),
        ([{"image_id": 1, "caption": "a"}], REFERENCES, "a list of captions is a file of predictions"),
        ({"1": ["a"], "2": "a dog"}, {"1": "a", "2": "b"}, "but '2' has 'a dog'"),
        (REFERENCES, REFERENCES, "the caption of '1' must be a string, got ['a dog runs', 'the dog']: keep one for"),
        (REFERENCES, {"annotations": [], "type": "captions"}, 'has "annotations", so it is a file of references'),
        (REFERENCES, {"1": None, "2": "a"}, "the caption of '1' must be a string, got None"),
        (REFERENCES, {"1": float("nan"), "2": "a"}, "the caption of '1' must be a string, got nan"),
        (REFERENCES, {"1": [None], "2": "a"}, "the caption of '1' must be a string, got None"),
        (REFERENCES, {"1": [], "2": "a"}, "the caption of '1' must be a string, got []"),
        ({"1": ["a", None], "2": ["b"]}, {"1": "a", "2": "b"}, "a reference of image '1' must be a string, got None"),
        ({}, {"1": "a"}, "r.json has no images"),
        ({"images": [], "annotations": []}, {"1": "a"}, "r.json has no images"),
        ({"images": [{"id": 1}], "annotations": []}, {"1": "a"}, "no image with references and a prediction in each"),
        ({"images": [{"id": 1}, {"id": "1"}], "annotations": []}, {"1": "a"}, "lists the id '1' twice"),
        ({"images": [{"id": None}], "annotations": []}, {"1": "a"}, "the id of an image must be a number or a string"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": n, "caption": "a"} for n in (1, 2)]}, {"1": "a"},
         '1 captions are of images that "images" does not list, the first of 2'),
    ],
)  # fmt: skip
def test_what_is_no_reference_or_no_prediction_is_refused(tmp_path, capsys, references, predictions, told):
    assert told in message(tmp_path, capsys, references, predictions)


def test_a_list_of_one_text_is_that_text_and_a_line_end_is_a_space(tmp_path):
    """pycocoevalcap, too, takes a line end inside a caption for a space; no caption moves to another image."""
    references = {"1": ["a dog runs far"], "2": ["the cat sleeps here"]}
    listed = scores_of(tmp_path, references, [{"image_id": i, "caption": [c]} for i, (c,) in references.items()])
    assert listed["CIDEr"] == pytest.approx(10)
    lines = {"1": "a dog\nruns far\n", "2": "the cat\nsleeps here"}
    assert scores_of(tmp_path, references, lines)["CIDEr"] == pytest.approx(10)
    with pytest.warns(UserWarning, match="1 of 2 captions contain a line separator"):
        captions = match_references([Path(write(tmp_path / "p.json", lines | {"1": "a dog\rruns far"}))],
                                    files.read_references(tmp_path / "r.json"), False)[1][0]  # fmt: skip
        records = [{"file_name": image, "captions": texts} for image, texts in references.items()]
        assert score_captions(records, list(captions.values()))[0]["corpus"]["CIDEr"] == pytest.approx(10)


def test_references_without_words_and_images_without_references_are_counted(tmp_path):
    """VizWiz's evaluator leaves out what is marked, and images that have nothing left."""
    annotations = [{"image_id": i, "caption": text, "is_rejected": i == 4, "is_precanned": i == 2}
                   for i, text in CAPTIONS.items()]  # fmt: skip
    content = {"images": [{"id": i} for i in [*IDS, 99]], "annotations": annotations}
    with pytest.warns(UserWarning) as told:
        references = files.read_references(Path(write(tmp_path / "r.json", content)))
    assert [str(one.message).partition(": ")[2] for one in told] == [
        "2 of 6 captions are marked is_rejected or is_precanned and left out",
        "3 of 7 images have no caption and are not scored, the first 4"]  # fmt: skip
    used, (captions,) = match_references(
        [Path(write(tmp_path / "p.json", {str(i): text for i, text in CAPTIONS.items()}))], references, False)
    assert list(captions) == [one.image_id for one in used] == [123456, 391895, 829718, 0]
    for empty in ("", " ", ".", "! ?"):
        with pytest.warns(UserWarning, match="1 of 4 references are empty texts"):
            records = [{"file_name": "a", "captions": ["a dog", empty]}, {"file_name": "b", "captions": ["cat", "x"]}]
            score_captions(records, ["a dog", "a cat"], people=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_captions([{"file_name": "a", "captions": ["a dog"]}, {"file_name": "b", "captions": ["x"]}], ["a", "b"])


def test_a_key_that_comes_twice_is_found_in_linear_time(tmp_path):
    rows = [f'"{n}": "a"' for n in range(100_000)]
    (tmp_path / "p.json").write_text("{" + ", ".join([*rows, rows[-1]]) + "}")
    begun = time.process_time()
    with pytest.raises(ValueError, match="the key '99999' twice"):
        files.read_predictions(tmp_path / "p.json")
    assert time.process_time() - begun < 5  # minutes, with a count for each key
