"""evaluate.py: what it writes, goes on after a kill, shares the pictures, compares, and refuses."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
from nanocaption import demo_set, metrics
from nanocaption.base import devices
from nanocaption.base.settings import load_settings, take_settings
from nanocaption.commands import decoding_flags
from nanocaption.data.dataset import ImageTextDataset
from nanocaption.data.prepared import load_records
from nanocaption.model.options import GREEDY, search_options
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import best_files
from nanocaption.score import results
from nanocaption.score.predictions import captions_by_id, image_ids, read_predictions
from nanocaption.score.scoring import score_captions
from nanocaption.score.split import load_split
from nanocaption.use import captioning
from nanocaption.use.captioning import caption_batches, caption_images, caption_split
from nanocaption.use.load import Loaded, load_models, load_state
from tests.conftest import CUTOFF
from tests.processes import command, end, start, start_ranks

BATCHES = ["--eval-batch-size", "5", "--beam-size", "2", "--device", "cpu"]


def told_by_name(*given, batch_size: int, **how) -> Iterator[list[list[SimpleNamespace]]]:
    """In place of caption_batches: captions that are each picture's own, so that none can be exchanged."""
    captions = []
    for path in given[2].paths:
        n = int(path.stem.removeprefix("scene_"))
        text = f"A {('red', 'blue', 'green')[n % 3]} {('car', 'dog', 'boat', 'kite', 'house')[n % 5]} number {n}."
        captions.append([SimpleNamespace(text=text, ids=[], broken=False)])
    yield from (captions[i : i + batch_size] for i in range(0, len(captions), batch_size))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No test here is about the captions themselves, unless it says `model_captions`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "caption_batches", told_by_name)
        yield


@pytest.fixture
def model_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "caption_batches", caption_batches)


@pytest.fixture(scope="module")
def trained(tiny_run_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a miniature run, a copy."""
    return best_files(Path(shutil.copytree(tiny_run_made, tmp_path_factory.mktemp("runs") / "run")))[0]


@pytest.fixture(scope="module")
def whole(trained: Path) -> Path:
    """Its results folder."""
    output = trained.parent / "whole"
    evaluate.main(["--checkpoint", str(trained), "--output", str(output), *BATCHES])
    return output


def read(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images in the batches captioned from here on."""
    batches = []

    def count(*args, **how):
        for captions in told_by_name(*args, **how):
            batches.append(len(captions))
            yield captions

    monkeypatch.setattr(captioning, "caption_batches", count)
    return batches


def test_the_results_folder_holds_coco_files_scores_with_intervals_and_the_page(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "predictions.json", "references.json", "report.html", "scores.json"]  # fmt: skip
    scores, predictions = read(whole / "scores.json"), read(whole / "predictions.json")
    assert [row["image_id"] for row in predictions] == list(range(CUTOFF))
    assert all(isinstance(row["caption"], str) for row in predictions)
    for name, value in scores["corpus"].items():
        low, high = scores["intervals"][name]
        assert low - 0.05 <= value <= high + 0.05
    assert 0 <= scores["text"]["seen"] <= 1 and scores["images"] == CUTOFF
    for part in ("demo/test", "metrics 1", "24 images", "references ", "beam 2", "float32", "checkpoint_epoch_2_"):
        assert part in scores["signature"], part
    coco = pytest.importorskip("pycocotools.coco").COCO(str(whole / "references.json"))
    assert sorted(coco.loadRes(str(whole / "predictions.json")).getImgIds()) == sorted(coco.getImgIds())


def test_the_captions_are_those_of_the_model(trained, tmp_path, model_captions):
    evaluate.main(["--checkpoint", str(trained), "--output", str(tmp_path), *BATCHES])
    loaded = load_models([trained], load_settings(BATCHES))
    split = load_split(loaded.settings, "test", loaded.states[0]["config"])
    images = ImageTextDataset(split.records, split.folder / "images", [[]] * CUTOFF, loaded.models[0].image_spec)
    found = caption_images(loaded.models, loaded.tokenizer, images, batch_size=7, workers=0, device=loaded.device,
                           options=search_options(loaded.settings.values), precision="fp32")  # fmt: skip
    expected = [captions[0].text for captions in found]
    assert [row["caption"] for row in read(tmp_path / "predictions.json")] == expected


def test_a_frozen_encoder_sees_each_picture_once_and_the_captions_stay(trained, tmp_path, model_captions):
    live = load_models([trained], load_settings(BATCHES))
    torch.manual_seed(0)
    for parameter in live.models[0].parameters():
        parameter.data.normal_(std=0.4)  # so that the pictures have captions of their own
    frozen = live._replace(settings=live.settings.replace(FREEZE_ENCODER=True))
    split, seen = load_split(live.settings, "test", live.states[0]["config"]), []
    split = split._replace(folder=Path(shutil.copytree(split.folder, tmp_path / "demo")))
    live.models[0].encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))

    def captioned(loaded: Loaded, name: str) -> list[str]:
        (tmp_path / name).mkdir()
        return caption_split(loaded, GREEDY, split, tmp_path / name, "key")[0]

    expected = captioned(live, "live")
    assert sum(seen) == CUTOFF and len(set(expected)) > 2
    assert captioned(frozen, "filling") == expected and sum(seen) == 2 * CUTOFF
    assert captioned(frozen, "filled") == expected and sum(seen) == 2 * CUTOFF
    (tmp_path / "part").mkdir()
    with (tmp_path / "part" / "captions-key-0-0.jsonl").open("w") as file:  # half of it is there already
        rows = [{"image": i, "caption": expected[i]} for i in range(0, CUTOFF, 2)]
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    assert caption_split(frozen, GREEDY, split, tmp_path / "part", "key")[0] == expected
    with torch.no_grad():
        live.models[0].encoder.norm.weight.mul_(2)  # another encoder has features of its own
    captioned(frozen, "changed")
    assert sum(seen) == 3 * CUTOFF


def test_the_table_shows_intervals_statistics_and_what_is_empty(whole):
    scores = read(whole / "scores.json")
    table = results.scores_table(scores)
    low, high = scores["intervals"]["CIDEr"]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in table and "stand in the training captions" in table
    assert "Only 24 images" in table and scores["signature"] in table
    assert "2 captions are empty" in results.scores_table(scores | {"text": scores["text"] | {"empty": 2}})


def test_an_evaluation_without_comparison_captions_anew(trained, counted, tmp_path):
    for times in (1, 2):
        evaluate.main(["--checkpoint", str(trained), "--output", str(tmp_path), *BATCHES])
        assert sum(counted) == times * CUTOFF


def dies_after_two_batches() -> None:
    original = captioning.caption_batches

    def mortal(*args, **how):
        for number, captions in enumerate(original(*args, **how)):
            if number == 2:
                os._exit(9)
            yield captions

    captioning.caption_batches = mortal


def test_a_killed_evaluation_goes_on_and_other_settings_start_over(trained, whole, counted, tmp_path, capsys):
    argv = ["--checkpoint", str(trained), "--output", str(tmp_path), *BATCHES]
    process = start(argv, tmp_path.with_name("printed"), dies_after_two_batches, main=lambda argv: evaluate.main(argv))
    assert end(process) == 9 and not (tmp_path / "scores.json").exists()
    with next(tmp_path.glob("captions-*.jsonl")).open("a") as file:
        file.write('{"image": 10, "capt')  # the kill may hit the middle of a line
    shutil.copytree(tmp_path, other := tmp_path.with_name("other"))
    evaluate.main(argv)
    assert sum(counted) == CUTOFF - 10 and "10 captions are there" in capsys.readouterr().out
    assert read(tmp_path / "predictions.json") == read(whole / "predictions.json")
    assert not list(tmp_path.glob("captions-*"))
    counted.clear()
    evaluate.main(["--checkpoint", str(trained), "--output", str(other), *BATCHES, "--length-penalty", "0.5"])
    assert sum(counted) == CUTOFF


def count_images(output: Path) -> None:
    original = captioning.caption_batches

    def count(model, tokenizer, images, **how):
        (output / f"count-{devices.rank()}").write_text(str(len(images)))
        return original(model, tokenizer, images, **how)

    captioning.caption_batches = count


def test_two_processes_caption_each_image_once_and_write_what_one_writes(trained, whole, tmp_path):
    (tmp_path / "captions-other-0-0.jsonl").write_text('{"image": 0, "caption": "wrong"}\n')
    argv = ["--checkpoint", str(trained), "--output", str(tmp_path), *BATCHES]

    def main(argv: list[str]) -> None:
        evaluate.main(argv)
        assert devices.world_size() == 1  # it has left the group

    printed = tmp_path.with_name("printed")
    processes = start_ranks(argv, printed, 2, lambda: count_images(tmp_path), main)
    assert [end(process) for process in processes] == [0, 0], printed.read_text()
    assert [(tmp_path / f"count-{rank}").read_text() for rank in (0, 1)] == ["12", "12"]
    for name in ("predictions.json", "references.json", "scores.json"):
        assert read(tmp_path / name) == read(whole / name)


# --- predictions of anyone ---


def score_file(content: object, demo_data: Path, folder: Path) -> dict:
    (folder / "theirs.json").write_text(json.dumps(content))
    evaluate.main(["--predictions", str(folder / "theirs.json"), "--data-dir", str(demo_data),
                     "--data-cutoff", str(CUTOFF)])  # fmt: skip
    newest = max(folder.glob("eval_test_theirs*"), key=lambda path: (path / "scores.json").stat().st_mtime_ns)
    return read(newest / "scores.json")


def test_predictions_of_anyone_are_scored_however_they_name_the_pictures(demo_data, whole, tmp_path):
    rows = read(whole / "predictions.json")
    expected = read(whole / "scores.json")
    ways = [
        rows[::-1],
        [{"image_id": row["image_id"], "caption": row["caption"]} for row in rows[::-1]],
        [{"image_id": row["file_name"], "caption": row["caption"]} for row in rows],
        {Path(row["file_name"]).stem: row["caption"] for row in rows},
    ]
    deep = [{"file_name": f"a/b{i}/{row['file_name']}"} for i, row in enumerate(rows)]
    (tmp_path / "flat.json").write_text(json.dumps(ways[2]))
    assert read_predictions(tmp_path / "flat.json", deep) == [row["caption"] for row in rows]
    for way in ways:
        scores = score_file(way, demo_data, tmp_path)
        assert scores["corpus"] == expected["corpus"] and scores["intervals"] == expected["intervals"]
    moved = [row | {"file_name": other["file_name"]} for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    assert score_file(moved, demo_data, tmp_path)["corpus"] != expected["corpus"]
    assert "captions of theirs.json" in scores["signature"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2:], "2 of 24 images have no prediction, the first 'scene_00048.jpg'"),
        (lambda rows: [*rows, rows[3]], "has two captions for image 'scene_00051.jpg'"),
        (lambda rows: [*rows, {"file_name": "no.jpg", "image_id": 0, "caption": "a"}], "1 of 25 .* the first 'no.jpg'"),
        (lambda rows: [*rows[1:], rows[0] | {"caption": None}], "the caption of 'scene_00048.jpg' must be a string"),
        (lambda rows: [*rows[1:], {"image_id": 0}], 'each entry needs "image_id" and "caption"'),
        (lambda rows: [], "has no predictions"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_in_one_line(demo_data, whole, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        score_file(change(read(whole / "predictions.json")), demo_data, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "eval_test_theirs").exists()


def test_empty_captions_and_a_single_picture_have_their_documented_values(demo_data):
    records = load_records(demo_data / "demo", "test")
    scores, per_image = score_captions(records, [""] * len(records))
    assert scores["corpus"]["CIDEr"] == scores["corpus"]["ROUGE_L"] == 0 and scores["text"]["empty"] == len(records)
    with pytest.warns(UserWarning, match="single image"):
        scores, _ = score_captions(records[:1], ["a dog"])
    assert scores["corpus"]["CIDEr"] == 0 and scores["intervals"]["CIDEr"] == (0, 0)


@pytest.mark.parametrize("content", ["[1]", '{"key": ["a"]}', '{"key": "b", "corp'])
def test_what_lies_in_a_results_folder_is_no_reason_to_stop(content, trained, tmp_path):
    path = Path(shutil.copy(trained, tmp_path))
    evaluate.main(["--checkpoint", str(path), *BATCHES])
    (own,) = tmp_path.glob("eval_*")
    (own / "scores.json").write_text(content)
    evaluate.main(["--checkpoint", str(path), *BATCHES])
    other = own.with_name(f"{own.name}_2")  # of nobody knows what: not overwritten
    assert (own / "scores.json").read_text() == content and read(other / "predictions.json")
    (other / "scores.json").unlink()
    rows = [{"image": 3}, {"image": [1], "caption": "a"}, {"image": 4, "caption": 5},
            {"image": 5, "caption": "kept"}, {"image": 6, "caption": "cut", "broken": True}]  # fmt: skip
    (other / "captions-k-0-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results.read_kept(other, "k") == {5: ("kept", False), 6: ("cut", True)}
    evaluate.main(["--compare", str(own), str(own)])


LOGS = {
    '{"type": "train", "loss": 1.0}\n{"type": "val", "step": "x", "val_loss": 1}\n'
    '{"type": "train", "step": 1, "epoch": null, "loss": 1}\n{"type": ["x"], "step": 2}\n': None,
    "\x00\x00\n{}\n": "no curves in the report: .*log.jsonl, line 1: not a JSON object",
}  # fmt: skip


@pytest.mark.parametrize("log", LOGS)
def test_a_log_that_cannot_be_drawn_costs_its_curves_alone(log, trained, tmp_path):
    path = Path(shutil.copy(trained, tmp_path))
    (tmp_path / "log.jsonl").write_text(log)
    with pytest.warns(UserWarning, match=LOGS[log]) if LOGS[log] else contextlib.nullcontext():
        evaluate.main(["--checkpoint", str(path), "--output", str(tmp_path / "out"), *BATCHES])
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "log.jsonl").write_text("of another program\n\n")
    shutil.copy(tmp_path / "out" / "predictions.json", tmp_path)
    place = ["--data-dir", str(checkpoint.load(path)["config"]["DATA_DIR"]), "--data-cutoff", str(CUTOFF)]
    evaluate.main(["--predictions", str(tmp_path / "predictions.json"), *place])


def test_numbers_that_may_mean_two_pictures_are_refused(demo_data):
    records = [{"file_name": f"{name}.jpg", "captions": ["a dog"]} for name in sorted(map(str, range(12)))]
    entries = [{"image_id": number, "caption": f"about {number}"} for number in range(12)]
    path = demo_data / "numbers.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"'2' may mean 10.jpg \(place in the split\) or 2.jpg \(by name\)"):
        read_predictions(path, records)
    named = [{"file_name": f"{entry['image_id']}.jpg", "caption": entry["caption"]} for entry in entries]
    for rows in ([entry | row for entry, row in zip(entries, named, strict=True)], named):
        path.write_text(json.dumps(rows))
        assert read_predictions(path, records) == [f"about {Path(r['file_name']).stem}" for r in records]
    path.write_text(json.dumps(entries[:10]))
    in_order = [{"file_name": f"{number}.jpg", "captions": ["a dog"]} for number in range(10)]
    assert read_predictions(path, in_order) == [f"about {number}" for number in range(10)]  # both ways agree
    path.unlink()


def test_pictures_of_coco_keep_their_own_numbers(tmp_path):
    records = [{"file_name": f"{n}.jpg", "captions": ["a dog", "a cat"], "image_id": 900 - n} for n in range(3)]
    results.write_results(tmp_path, records, ["x", "y", "z"], {})
    assert [row["image_id"] for row in read(tmp_path / "predictions.json")] == [900, 899, 898]
    references = read(tmp_path / "references.json")
    assert [row["id"] for row in references["images"]] == [900, 899, 898]
    assert {(row["image_id"], row["caption"]) for row in references["annotations"]} == {
        (number, caption) for number in (900, 899, 898) for caption in ("a dog", "a cat")}  # fmt: skip
    assert len({row["id"] for row in references["annotations"]}) == 6
    (tmp_path / "theirs.json").write_text(json.dumps([{"image_id": n, "caption": str(n)} for n in (898, 899, 900)]))
    assert read_predictions(tmp_path / "theirs.json", records) == ["900", "899", "898"]
    assert image_ids([*records, records[0]]) == [0, 1, 2, 3]  # of two sets, say
    assert image_ids([records[0], {"file_name": "own.jpg"}]) == [0, 1]


def test_only_one_of_several_processes_scores_a_file(demo_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "rank", lambda: 1)
    assert score_quietly(demo_data, tmp_path) == [] and capsys.readouterr().out == ""
    monkeypatch.undo()
    assert score_quietly(demo_data, tmp_path) == ["eval_test_theirs"] and "CIDEr" in capsys.readouterr().out


def score_quietly(demo_data: Path, folder: Path) -> list[str]:
    captions = {record["file_name"]: "a dog" for record in load_records(demo_data / "demo", "test")}
    (folder / "theirs.json").write_text(json.dumps(captions))
    evaluate.main(["--predictions", str(folder / "theirs.json"), "--data-dir", str(demo_data)])
    return [path.name for path in folder.glob("eval_*")]


def test_missing_java_is_told_before_anything_is_captioned(trained, counted, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for flag in ("--meteor", "--spice"):
        with pytest.raises(ValueError, match=f"{flag.strip('-').upper()} needs Java"):
            evaluate.main(["--checkpoint", str(trained), "--output", str(tmp_path / "out"), *BATCHES, flag])
    assert counted == []


def test_a_data_set_that_is_not_whole_is_not_scored(demo_data, tmp_path):
    shutil.copytree(demo_data / "demo", tmp_path / "data" / "demo")
    (tmp_path / "data" / "demo" / "manifest.json").unlink()
    (tmp_path / "theirs.json").write_text("{}")
    with pytest.raises(ValueError, match="demo is not whole: it has no manifest.json"):
        evaluate.main(["--predictions", str(tmp_path / "theirs.json"), "--data-dir", str(tmp_path / "data")])


def test_pictures_without_references_are_told_before_anything_is_captioned(demo_data, tmp_path):
    shutil.copytree(demo_data / "demo", tmp_path / "demo")
    path, settings = tmp_path / "demo" / "captions.json", load_settings(["--data-dir", str(tmp_path)])
    content = read(path)
    bare = next(record for record in content["images"] if record["split"] == "test")
    bare["captions"] = []
    path.write_text(json.dumps(content))
    manifest = read(path.with_name("manifest.json")) | {"captions_sha256": sha256(path.read_bytes()).hexdigest()}
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    told = f"1 of 24 pictures have no reference caption, the first '{bare['file_name']}'"
    with pytest.raises(ValueError, match=told):
        load_split(settings, "test", settings.values)


# --- comparison ---


def test_a_comparison_captions_a_checkpoint_once_and_tells_the_difference(trained, whole, counted, tmp_path, capsys):
    people = tmp_path / "people.json"
    references = captions_by_id(metrics.files.read_references(whole / "references.json"))
    people.write_text(json.dumps({image: captions[0] for image, captions in references.items()}))
    command = ["--compare", str(trained), str(people), "--json", str(tmp_path / "out.json"), *BATCHES]
    evaluate.main(command)
    assert sum(counted) == CUTOFF and "p" in capsys.readouterr().out
    evaluate.main(command)
    assert sum(counted) == CUTOFF  # its results were there
    found = read(tmp_path / "out.json")
    assert found["differences"]["CIDEr"]["low"] > 0 and found["differences"]["CIDEr"]["p"] < 0.01
    assert metrics.references_digest(references) in found["signature"]
    expected = read(whole / "scores.json")["corpus"]["CIDEr"]
    assert found["differences"]["CIDEr"]["first"] == pytest.approx(expected, abs=1e-12)


def test_checkpoints_of_one_epoch_are_compared_and_keep_folders_of_their_own(trained, tmp_path, capsys, model_captions):
    state, first, second = checkpoint.load(trained), tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    shutil.copy(trained, first)
    for number, tensor in enumerate(state["model_state_dict"].values()):
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    checkpoint.save(second, state)
    out = tmp_path / "out.json"
    evaluate.main(["--compare", str(first), str(second), "--json", str(out), *BATCHES])
    found = read(out)
    assert found["first"] != found["second"]
    told = capsys.readouterr().out
    assert all("beam 2" in made_by and made_by in told for made_by in found["made_by"])
    assert f"first.safetensors {results.digest(first)}" in found["made_by"][0]
    kept = {side: read(Path(found[side]) / "predictions.json") for side in ("first", "second")}
    assert kept["first"] != kept["second"]
    evaluate.main(["--checkpoint", str(first), *BATCHES, "--precision", "bf16"])
    evaluate.main(["--checkpoint", str(second), *BATCHES])
    assert {side: read(Path(found[side]) / "predictions.json") for side in kept} == kept
    folders = sorted(path.name for path in tmp_path.glob("eval_*"))
    assert len(folders) == 3 and folders[2] == f"{folders[0]}_3"
    capsys.readouterr()
    evaluate.main(["--compare", found["first"], found["second"]])
    assert metrics.differences_table({}).splitlines()[0] in (again := capsys.readouterr().out)
    assert all(made_by in again for made_by in found["made_by"])


def test_a_comparison_with_a_checkpoint_that_is_not_there_captions_nothing(trained, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("captioned"))
    for sides in ([str(trained), "typo.safetensors"], [str(trained), "typo.json"]):
        with pytest.raises((SystemExit, ValueError), match="There is no .*typo"):
            evaluate.main(["--compare", *sides])


def test_both_sides_of_a_comparison_go_by_file_name(whole, tmp_path):
    rows = read(whole / "predictions.json")
    turned = [row | {"image_id": other["image_id"]} for row, other in zip(rows, rows[::-1], strict=True)]
    named = {row["file_name"]: row["caption"] for row in rows}
    for content in (turned, [{"image_id": name, "caption": text} for name, text in named.items()], named,
                    {Path(name).stem: text for name, text in named.items()}):  # fmt: skip
        (tmp_path / "same.json").write_text(json.dumps(content))
        for sides in ([str(whole), str(tmp_path / "same.json")], [str(tmp_path / "same.json"), str(whole)]):
            evaluate.main(["--compare", *sides, "--json", str(tmp_path / "out.json")])
            assert {row["difference"] for row in read(tmp_path / "out.json")["differences"].values()} == {0.0}


def test_sides_without_names_or_with_names_that_look_like_numbers_are_compared(tmp_path):
    """COCO references need not list their images; a number is a number, whatever the pictures are called."""
    names, texts = {1: "2.jpg", 2: "3.jpg", 3: "1.jpg"}, {1: "a dog runs", 2: "two cats sit", 3: "a red car"}
    references = {"annotations": [{"id": i, "image_id": i, "caption": f"{text} here"} for i, text in texts.items()]}
    plain = [{"image_id": i, "caption": text} for i, text in texts.items()]
    listed = references | {"images": [{"id": i, "file_name": name} for i, name in names.items()]}
    named = [row | {"file_name": names[row["image_id"]]} for row in plain]
    sides = {"a": (references, plain), "b": (listed, named), "c": (listed, plain)}
    for folder, (of_side, rows) in sides.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "references.json").write_text(json.dumps(of_side))
        (tmp_path / folder / "predictions.json").write_text(json.dumps(rows))
    for first, second in itertools.permutations(sides, 2):
        out = tmp_path / "out.json"
        evaluate.main(["--compare", str(tmp_path / first), str(tmp_path / second), "--json", str(out)])
        assert {row["difference"] for row in read(out)["differences"].values()} == {0.0}


def test_a_comparison_over_other_images_or_references_is_refused(whole, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    content = read(other / "references.json")
    content["annotations"][0]["caption"] = "something else"
    (other / "references.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"1 of 24 images have other references in the two sets, the first \[0\]"):
        evaluate.main(["--compare", str(whole), str(other)])
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(read(whole / "predictions.json")[:20]))
    with pytest.raises(ValueError, match="4 of 24 images have no prediction, the first"):
        evaluate.main(["--compare", str(whole), str(alone)])
    with pytest.raises(ValueError, match="Neither side has a references.json"):
        evaluate.main(["--compare", str(alone), str(alone)])
    with pytest.raises(ValueError, match="There is no .*predictions.json"):
        evaluate.main(["--compare", str(whole), str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "x"], "--json goes with --compare"),
        (["--compare", "a", "b", "--output", "x"], "--compare names both sides itself"),
        (["--compare", "a", "b", "--split", "val"], "--split is for checkpoints"),
        (["--compare", "a", "b.safetensors", "--json", "nowhere/x.json"], "its folder does not exist"),
        (["--compare", "a", "b.safetensors", "--split", "val"], "There is no a. Name a results folder"),
        (["--beam-size", "101"], "BEAM_SIZE = 101: at most 100"),
        (["--beam-groups", "101"], "--beam-groups 101: at most 100"),
        (["--top-p", "0.5"], "add --sample"),
        (["--predictions", "x.json", "--sample"], "here all is captioned already"),
        (["--compare", "a", "b", "--beam-groups", "2"], "here all is captioned already"),
        (["--predictions", "x.json", "--dataset", "none"], "There is no data set"),
    ],
)
def test_flags_that_do_not_go_together_are_told(flags, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        evaluate.main(flags)


def test_ctrl_c_keeps_what_is_captioned_and_says_so(trained, demo_data, tmp_path, capsys):
    """As typed: evaluate.py from the top, to the code and the line it leaves with."""
    flags = ["--checkpoint", str(trained), "--output", str(tmp_path / "out"), "--data-dir", str(demo_data)]
    flags += ["--device", "cpu", "--eval-batch-size", "1", "--beam-size", "2"]

    def interrupted(*args, **how):
        for number, captions in enumerate(caption_batches(*args, **how)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            yield captions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "caption_batches", interrupted)  # the forked program imports it from there
        done = command(tmp_path, "evaluate.py", *flags)
    assert done.code == 130 and done.err.endswith("the same command goes on from there.\n")
    assert "Traceback" not in done.err
    evaluate.main(flags)
    assert "3 captions are there from a start that was stopped" in capsys.readouterr().out


# --- confusions of the demo set ---


def test_confusions_name_the_true_colour_and_the_thing_left_out():
    scene = {"things": [{"kind": "car", "color": "red"}, {"kind": "kite", "color": "blue"}]}
    found = demo_set.caption_confusions("A green car under a blue balloon and a sun.", scene)
    assert found == {"colours": [("red", "green")], "things": [("car", "car"), ("kite", "balloon"), ("nothing", "sun")]}
    assert demo_set.caption_confusions("", scene) == {"colours": [], "things": []}
    total = demo_set.total_confusions(["a red car", "a red car", "a dog"], [scene] * 3)
    assert total == {"colours": [("red", "red", 2)], "things": [("car", "car", 2), ("car", "dog", 1)]}


def test_an_ensemble_of_one_model_twice_is_that_model(trained, tmp_path, model_captions):
    both = tmp_path / "both"
    evaluate.main(["--checkpoint", str(trained), "--output", str(tmp_path / "one"), *BATCHES])
    evaluate.main(["--checkpoint", f"{trained},{trained}", "--output", str(both), *BATCHES])
    assert read(both / "predictions.json") == read(tmp_path / "one" / "predictions.json")
    assert read(both / "scores.json")["signature"].count(trained.name) == 2
    loaded = load_models([trained, trained], load_settings(BATCHES))
    split = load_split(loaded.settings, "test", loaded.states[0]["config"])
    rows = [{"file_name": record["file_name"], "caption": "a dog"} for record in split.records[:2]]
    places = {row["file_name"]: split.folder / "images" / row["file_name"] for row in rows}
    evaluate._add_maps(rows, loaded._replace(models=loaded.models[:1]), places)
    assert [row["attention"]["words"][1]["text"] for row in rows] == ["dog", "dog"]
    # Several models have no one place to look at.
    assert "data-maps" not in (both / "report.html").read_text(encoding="utf-8")


def test_an_ensemble_is_compared_and_tells_its_own_limit(trained, tmp_path, model_captions):
    state = checkpoint.load(trained)
    shorter = tmp_path / "shorter.safetensors"
    state["model_state_dict"]["decoder.position_embedding.weight"] = (
        state["model_state_dict"]["decoder.position_embedding.weight"][:9].clone())  # fmt: skip
    state["config"]["MAX_SEQ_LEN"] = 9
    checkpoint.save(shorter, state)
    longer = Path(shutil.copy(trained, tmp_path))
    for pair in (f"{longer},{shorter}", f"{shorter},{longer}"):
        out = tmp_path / "out.json"
        evaluate.main(["--compare", pair, str(shorter), "--json", str(out), *BATCHES])
        made_by = read(out)["made_by"]
        assert all(", longest 9, " in one for one in made_by) and made_by[0].count(".safetensors ") == 2


def test_options_that_change_captions_have_folders_of_their_own(trained):
    loaded = load_models([trained], load_settings([]))
    split = load_split(loaded.settings, "test", loaded.states[0]["config"])
    flags = (
        "", "--min-length 3", "--no-repeat-ngram 2", "--beam-size 5", "--length-penalty 0", "--beam-groups 3",
        "--beam-groups 3 --diversity-penalty 1", "--sample", "--sample --seed 7", "--sample --temperature 0.5",
        "--max-length 9", "--sample --top-k 5", "--sample --top-p 0.9", "--sample --min-length 3",
    )  # fmt: skip
    labels, decodings = set(), set()
    for line in flags:
        own, rest = take_settings(line.split())
        settings = load_state(trained, load_settings(own))[1]
        options = decoding_flags.options(evaluate._PARSER.parse_args(rest), search_options(settings.values))
        labels.add(captioning.results_name(loaded._replace(settings=settings), options, split))
        decodings.add(str(captioning.decoding_facts(loaded._replace(settings=settings), options)))
    assert len(labels) == len(decodings) == len(flags)


def test_random_captions_are_the_same_whatever_was_captioned_with_them(trained, tmp_path, model_captions):
    flags = ["--checkpoint", str(trained), "--device", "cpu", "--sample", "--top-k", "8"]

    def drawn(name: str, *more: str) -> list[str]:
        evaluate.main([*flags, "--output", str(tmp_path / name), *more])
        return [row["caption"] for row in read(tmp_path / name / "predictions.json")]

    whole = drawn("whole")
    assert len(set(whole)) > CUTOFF / 2 and "sampled with seed 1, temperature 1.0, top-k 8" in read(
        tmp_path / "whole" / "scores.json")["signature"]  # fmt: skip
    key = read(tmp_path / "whole" / "scores.json")["key"]
    (tmp_path / "part").mkdir()
    rows = [{"image": i, "caption": whole[i]} for i in (0, 1, 2, 9)]
    (tmp_path / "part" / f"captions-{key}-0-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert drawn("part", "--eval-batch-size", "5") == whole
    assert drawn("other", "--seed", "7") != whole
    assert all(short in long for long, short in zip(whole, drawn("short", "--max-length", "4"), strict=True))
