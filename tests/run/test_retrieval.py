"""A head trained along: resumed to the bit, exported, evaluated; a folder searched by words and by a picture."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import prepare_dataset
import train
from nanocaption.base.settings import load_settings
from nanocaption.commands import demo, search, similar
from nanocaption.model import exported
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST
from nanocaption.score import retrieval_page
from nanocaption.score.retrieval import retrieval_scores
from nanocaption.use import index, ranking
from nanocaption.use.load import load_models
from tests.conftest import TINY_RUN, run_command, tiny_flags
from tests.processes import losses

HEAD = ["--contrastive-weight", "0.5", "--run-name", "joint", "--grad-accum-steps", "2", "--batch-size", "10"]


@pytest.fixture(scope="module")
def joint(demo_data, tmp_path_factory) -> Path:
    """The folder of a run of two epochs with a contrastive head; to be read only."""
    output = tmp_path_factory.mktemp("joint")
    train.main([*tiny_flags(demo_data, output), *TINY_RUN.split(), *HEAD])
    return output / "joint"


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def ranked(*words: str) -> dict:
    evaluate.main(["--task", "retrieval", *words])
    return json.loads((Path(words[words.index("--output") + 1]) / "retrieval.json").read_text())


def test_head_temperature_and_bias_resume_to_the_bit(joint, tmp_path):
    (source,) = joint.glob("checkpoint_epoch_1_*")
    (folder := tmp_path / "resumed").mkdir()
    shutil.copyfile(source, folder / source.name)
    train.main(["--resume-checkpoint-path", str(folder / source.name)])
    a, b = (checkpoint.load(path / LAST) for path in (joint, folder))
    assert same(a["model_state_dict"], b["model_state_dict"])
    head = {n for n in a["model_state_dict"] if n.startswith("retrieval.")}
    assert {"retrieval.log_scale", "retrieval.bias"} <= head
    for name in ("retrieval.log_scale", "retrieval.text.queries"):
        moments = [state["optimizer_state_dict"]["state"][name] for state in (a, b)]
        assert same(*moments) and moments[0]["exp_avg"].abs().max() > 0
    assert losses(folder)[-1] == losses(joint)[-1]
    first = checkpoint.load(source)["model_state_dict"]
    assert not torch.equal(first["retrieval.log_scale"], a["model_state_dict"]["retrieval.log_scale"])  # it is learnt
    with pytest.raises(SystemExit, match="CONTRASTIVE_WEIGHT: 0.5 -> 0.1"):
        train.main(["--resume-checkpoint-path", str(folder / source.name), "--contrastive-weight", "0.1"])
    rows = [json.loads(line) for line in (joint / "log.jsonl").read_text().splitlines()]
    assert all(0.01 <= row["temperature"] <= 1 for row in rows if row["type"] == "train")
    assert all(0 <= row["r_mean"] <= 100 for row in rows if row["type"] == "val")


def test_a_head_alone_leaves_the_captioner_as_it_is_and_is_left_out_where_it_would_not_fit(
    tiny_run, demo_data, tmp_path, capsys
):
    start = tiny_run / LAST
    flags = [*tiny_flags(demo_data, tmp_path), "--num-epochs", "1", "--init-checkpoint-path", str(start)]
    train.main([*flags, "--objective", "contrastive", "--run-name", "alone"])
    before, after = (checkpoint.load(path)["model_state_dict"] for path in (start, tmp_path / "alone" / LAST))
    assert same(before, {n: after[n] for n in before}) and after.keys() - before.keys()
    capsys.readouterr()
    train.main([*flags[:-1], str(tmp_path / "alone" / LAST), "--run-name", "without"])
    assert "which is left out: CONTRASTIVE_WEIGHT is 0" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "without" / LAST)["model_state_dict"].keys() == before.keys()


def test_an_evaluation_ranks_by_all_that_the_checkpoint_can(joint, demo_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ranking, "MARGINAL", 6)
    monkeypatch.setattr(ranking, "CHOSEN_ON", 8)
    output = tmp_path / "out"
    where = ["--checkpoint", str(joint / LAST), "--output", str(output), "--split", "test"]
    found = ranked(*where, "--k-test", "5")
    printed = capsys.readouterr().out
    assert list(found["rankings"]) == ["likelihood", "head", "both"] and "expected rank at ties" in printed
    captions = json.loads((output / "captions.json").read_text())
    owner = [row["image"] for row in captions]
    assert owner == [n for n in range(24) for _ in range(5)]
    scores = np.load(output / "scores.npy")
    assert scores.dtype == np.float32 and scores.shape == (24, 120)
    for name, file in (("both", "scores.npy"), ("head", "scores_head.npy"), ("likelihood", "scores_likelihood.npy")):
        assert retrieval_scores(np.load(output / file), owner) == found["rankings"][name]["scores"]
    row = found["rankings"]["both"]
    assert row["pairs"] < 24 * 120 and set(row["stage_1"]) == {"i2t_R@5", "t2i_R@5"}
    assert "chosen on 8 pictures of val" in row["signature"] and "over 6 training pictures" in row["signature"]
    page = (output / "report.html").read_text()
    assert page.count("<article") >= 48 and "Hardest confusions" in page and "{{" not in page
    assert not list(output.glob("likelihood-*")), "what was kept of an unfinished one"
    # The pairs alone, without the likelihoods of all: the same ranking.
    alone = ranked(*where[:3], str(tmp_path / "both"), *where[4:], "--k-test", "5", "--by", "both")
    assert alone["rankings"]["both"]["scores"] == pytest.approx(row["scores"])
    capsys.readouterr()
    ranked(*where[:3], str(tmp_path / "k"), *where[4:], "--k-test", "99", "--by", "both")
    assert "Note: K_TEST = 99, but there are 24 pictures" in capsys.readouterr().out


def test_a_stopped_evaluation_goes_on(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ranking, "MARGINAL", 2)
    monkeypatch.setattr(ranking, "CHOSEN_ON", 2)
    output = tmp_path / "out"
    words = ["--checkpoint", str(tiny_run / LAST), "--output", str(output), "--split", "test"]
    real, made = ranking.log_likelihoods, []

    def counted(model, image, packed):
        made.append(1)
        if len(made) == 10:  # two of the marginal before
            raise KeyboardInterrupt
        return real(model, image, packed)

    monkeypatch.setattr(ranking, "log_likelihoods", counted)
    with pytest.raises(KeyboardInterrupt):
        ranked(*words)
    made[:] = [0] * 100
    found = ranked(*words)
    assert list(found["rankings"]) == ["likelihood"]
    assert len(made) - 100 == 2 + (24 - 7) + 2 + 2  # marginal, the rows that are left, alpha and its marginal
    whole = ranked(*words[:3], str(tmp_path / "whole"), *words[4:])
    assert whole["rankings"]["likelihood"]["scores"] == found["rankings"]["likelihood"]["scores"]
    with pytest.raises(SystemExit, match="no contrastive head"):
        evaluate.main(["--task", "retrieval", *words, "--by", "head"])


@pytest.mark.parametrize(("more", "told"), [
    (["--data-cutoff", "1"], "1 picture: retrieval ranks a picture among others"),
    (["--sample"], "--task retrieval captions nothing"),
    (["--by", "rank"], "no ranking"),
])  # fmt: skip
def test_what_cannot_be_ranked_is_one_line(joint, more, told):
    with pytest.raises((SystemExit, ValueError), match=told) as error:
        evaluate.main(["--task", "retrieval", "--checkpoint", str(joint / LAST), *more])
    assert "\n" not in str(error.value)


def test_an_export_keeps_the_head(joint, tmp_path):
    state = checkpoint.load(joint / LAST)
    exported.write(tmp_path / "out", state, "A card.")
    back = exported.read(tmp_path / "out")
    assert same(back["model_state_dict"], state["model_state_dict"])
    assert back["model_arguments"] == {"contrastive": True}


def test_confusions_are_counted_both_ways():
    owner = np.repeat(np.arange(4), 2)
    scores = np.eye(4)[:, owner]
    scores[:, [0, 1]] = np.array([[0, 0], [1, 1], [0, 0], [0, 0]])  # both captions of picture 0 find picture 1
    scores[:, 2] = [1, 0, 0, 0]  # one of picture 1 finds picture 0
    scores[:, 7] = [0, 0, 1, 0]
    first, second = retrieval_page.confusions(scores, owner)
    assert first == (0, 1, [0, 1], 1) and second == (3, 2, [7], 0)


# --- Search ---


@pytest.fixture
def folder(demo_data, tmp_path) -> Path:
    """Twelve pictures, one of them below, and a file that is none."""
    pictures = sorted((demo_data / "demo" / "images").iterdir())[:12]
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    for number, path in enumerate(pictures):
        shutil.copyfile(path, place / ("below" if number == 3 else ".") / path.name)
    (place / "broken.jpg").write_text("no picture")
    return place


def searched(joint, folder, tmp_path, capsys, *queries, command=search, expect=1, **flags):
    words = [*queries, "--images", str(folder), "--checkpoint", str(joint / LAST), "--json", "--index",
             str(flags.get("index", tmp_path / "index")), "--top", str(flags.get("top", 5))]  # fmt: skip
    capsys.readouterr()
    code = run_command(command.main, words)
    said = capsys.readouterr()
    assert code == expect, said.err
    return json.loads(said.out) if said.out else said.err


def test_an_index_grows_with_its_folder_and_goes_on_where_it_was_killed(joint, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(index, "_AT_ONCE", 3)
    found = searched(joint, folder, tmp_path, capsys, "a red cat", "a boat", top=20)
    assert [row["query"] for row in found] == ["a red cat", "a boat"] and len(found[0]["found"]) == 12
    cosines = [hit["cosine"] for hit in found[0]["found"]]
    assert cosines == sorted(cosines, reverse=True) and max(cosines) <= 1
    assert any("below" in hit["file_name"] for hit in found[0]["found"])
    assert (tmp_path / "index" / "vectors.f16").stat().st_size == 12 * 256 * 2
    assert searched(joint, folder, tmp_path, capsys, "a red cat", "a boat", top=20) == found

    real = index.picture_vectors
    monkeypatch.setattr(index, "picture_vectors", lambda *_: pytest.fail("nothing is new"))
    assert searched(joint, folder, tmp_path, capsys, "a boat", top=20)[0] == found[1]
    # New, gone and changed pictures.
    names = sorted(path.name for path in folder.glob("scene*.jpg"))
    (folder / names[0]).unlink()
    shutil.copyfile(folder / names[1], folder / "copy.jpg")
    made = []
    monkeypatch.setattr(index, "picture_vectors", lambda model, pixels: (made.extend(pixels), real(model, pixels))[1])
    grown = searched(joint, folder, tmp_path, capsys, "a boat", top=20)[0]["found"]
    assert len(made) == 1 and len(grown) == 12 and names[0] not in str(grown) and "copy.jpg" in str(grown)
    fresh = searched(joint, folder, tmp_path, capsys, "a boat", top=20, index=tmp_path / "other")[0]["found"]
    assert [(hit["file_name"], round(hit["cosine"], 3)) for hit in fresh] == [
        (hit["file_name"], round(hit["cosine"], 3)) for hit in grown]  # fmt: skip

    # Killed in the middle: a half written vector, a torn line.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "other", killed)
    lines = (killed / "pictures.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "pictures.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:10])
    with (killed / "vectors.f16").open("r+b") as file:
        file.truncate(9 * 256 * 2 - 100)
    assert searched(joint, folder, tmp_path, capsys, "a boat", top=20, index=killed)[0]["found"] == fresh
    assert (killed / "pictures.jsonl").read_bytes() == (tmp_path / "other" / "pictures.jsonl").read_bytes()


def test_similar_finds_the_picture_itself_first(joint, folder, tmp_path, capsys):
    picture = next(iter(sorted(folder.glob("scene*.jpg"))))
    (found,) = searched(joint, folder, tmp_path, capsys, str(picture), command=similar)
    assert found["found"][0]["file_name"] == str(picture) and found["found"][0]["cosine"] > 0.999
    assert len(found["found"]) == 5


def test_mistakes_of_a_search_are_one_line(joint, tiny_run, folder, tmp_path, capsys):
    searched(joint, folder, tmp_path, capsys, "a boat")
    about = tmp_path / "index" / "index.json"
    about.write_text(about.read_text().replace('"checkpoint": "', '"checkpoint": "0'))
    assert "another checkpoint" in searched(joint, folder, tmp_path, capsys, "a boat")
    assert "nothing to look for" in searched(joint, folder, tmp_path, capsys, "  ")
    assert "no contrastive head" in searched(tiny_run, folder, tmp_path, capsys, "a boat", index=tmp_path / "n")
    assert "no such folder" in searched(joint, tmp_path / "nowhere", tmp_path, capsys, "a boat")
    assert "--top 0: must be 1 or more" in searched(joint, folder, tmp_path, capsys, "a boat", top=0)
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in searched(joint, tmp_path / "empty", tmp_path, capsys, "a", index=tmp_path / "n")


def test_the_page_shows_small_pictures_of_what_is_found(joint, tiny_run, folder, tmp_path):
    loaded = load_models([joint / LAST], load_settings([]))
    found = demo.index_of(loaded, joint / LAST, folder, str(tmp_path / "data"))
    page = demo.found_html(loaded, found, "a boat & <b>a cat")
    assert page.count('<img src="data:image/jpeg;base64,') == 12 and "no longer there" not in page
    next(iter(sorted(folder.glob("scene*.jpg")))).unlink()
    page = demo.found_html(loaded, found, "a boat")
    assert page.count("<img") == 11 and "1 of the nearest are no longer there" in page
    with pytest.raises(SystemExit, match="no contrastive head"):
        demo.index_of(load_models([tiny_run / LAST], load_settings([])), tiny_run / LAST, folder, str(tmp_path))


def test_prepare_tells_near_duplicates_by_a_model(joint, demo_data, tmp_path, capsys):
    data = Path(shutil.copytree(demo_data, tmp_path / "data"))
    images = sorted((data / "demo" / "images").iterdir())
    shutil.copyfile(images[0], images[-1])  # a picture of train stands in test
    prepare_dataset.main(["--data-dir", str(data), "--data-cutoff", "24", "--model", str(joint / LAST)])
    assert "near-duplicates across splits" in capsys.readouterr().out
    content = json.loads((data / "demo" / "near_duplicates.json").read_text())
    first = content["pairs"][0]
    assert {first["first"], first["second"]} == {images[0].name, images[-1].name} and first["cosine"] > 0.9999
    with pytest.raises(SystemExit, match="name a checkpoint"):
        prepare_dataset.main(["--model"])
