"""Question sets of every layout become the same kind of records; what cannot be used is told and left out."""

import json
from pathlib import Path

import pytest
from PIL import Image

from nanocaption.data.prepared import load_records, verify
from nanocaption.data.questions import asking, best_answer, load_questions
from nanocaption.prepare import question_files
from nanocaption.prepare.make import prepare
from tests.conftest import run_command

NAMES = [f"{number:012d}.jpg" for number in range(1, 25)]
TEN = ["red"] * 6 + ["Red"] * 3 + ["dark red"]


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder with pictures of 12 x 12 pixels, all different."""
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (12, 12), (10 * number, 255 - 10 * number, 7 * number)).save(folder / "images" / name)
    return folder


def write(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def made(raw: Path, tmp_path: Path, **how) -> list[dict]:
    folder = prepare("mine", tmp_path / "data", raw_dir=raw, questions=True, **how)
    return json.loads((folder / "captions.json").read_text())["images"]


def by_name(records: list[dict]) -> dict[str, list[dict]]:
    return {record["file_name"].rpartition("/")[2]: record["questions"] for record in records}


def vqa_files(raw: Path, split: str, numbers: range) -> None:
    questions = [{"question_id": 10 * n + k, "image_id": n, "question": f"What colour is thing {k}?"}
                 for n in numbers for k in (0, 1)]  # fmt: skip
    annotations = [{"question_id": one["question_id"], "image_id": one["image_id"], "question_type": "what colour",
                    "answer_type": "other", "multiple_choice_answer": "red",
                    "answers": [{"answer_id": i, "answer": text, "answer_confidence": "yes"} for i, text in
                                enumerate(TEN, start=1)]} for one in questions]  # fmt: skip
    write(raw / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
    write(raw / f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})


def test_the_two_files_of_vqa_are_joined_and_pictures_found_by_their_numbers(raw, tmp_path, capsys):
    for name in NAMES[:16]:
        (raw / "images" / name).rename(raw / "images" / f"COCO_train2014_{name}")
    vqa_files(raw, "train", range(1, 17))
    vqa_files(raw, "val", range(17, 25))
    records = made(raw, tmp_path)
    assert [record["split"] for record in records] == ["train"] * 16 + ["val"] * 8
    first = records[0]
    assert first["file_name"] == f"COCO_train2014_{NAMES[0]}" and first["captions"] == []
    assert first["questions"][1] == {"question": "What colour is thing 1?", "answers": TEN, "id": 11,
                                     "type": "what colour", "answer_type": "other"}  # fmt: skip
    printed = capsys.readouterr().out
    assert "Checked 24 pictures and 48 questions." in printed and "48 kept, with 480 answers" in printed
    assert "types: what colour 48" in printed and "'red' 100.0%" in printed
    assert "train 16 pictures / 32 questions, val 8 pictures / 16 questions" in printed
    assert verify(tmp_path / "data" / "mine")["counts"]["train"] == {"images": 16, "captions": 0, "questions": 32}
    assert load_questions(tmp_path / "data" / "mine", "val")[0]["questions"][0]["id"] == 170


def test_questions_without_their_annotations_are_one_line(raw, tmp_path):
    vqa_files(raw, "train", range(1, 25))
    (raw / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(ValueError, match="none of its 48 questions has an answer; put the file of") as error:
        made(raw, tmp_path)
    assert "\n" not in str(error.value)


def entries(number: int = 24) -> list[dict]:
    return [{"image": name, "question": f"Is it {n}?", "answer": "yes" if n % 2 else "no", "question_id": n}
            for n, name in enumerate(NAMES[:number])]  # fmt: skip


LAYOUTS = {
    "list.json": entries(),
    "lines.jsonl": "\n".join(map(json.dumps, entries())),
    "table.csv": "image,question,answer,question_id\n" + "\n".join(
        f"{e['image']},{e['question']},{e['answer']},{e['question_id']}" for e in entries()),
    "gqa.json": {str(e["question_id"]): {"question": e["question"], "imageId": e["image"][:-4], "answer": e["answer"],
                                         "types": {"structural": "verify"}} for e in entries()},
    "textvqa.json": {"data": [{"question_id": e["question_id"], "image_id": e["image"][:-4], "question": e["question"],
                               "answers": [e["answer"]], "set_name": "train" if n < 16 else "val"}
                              for n, e in enumerate(entries())]},
    "vizwiz.json": [{"image": e["image"], "question": e["question"], "answerable": 1, "answer_type": "yes/no",
                     "answers": [{"answer": e["answer"], "answer_confidence": "yes"}]} for e in entries()],
    "llava.json": [{"id": str(e["question_id"]), "image": e["image"], "conversations": [
        {"from": "human", "value": f"<image>\n{e['question']}"}, {"from": "gpt", "value": e["answer"]}]}
        for e in entries()],
    "chat.json": [{"images": [e["image"]], "texts": [{"user": e["question"], "assistant": e["answer"]}]}
                  for e in entries()],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_questions(raw, tmp_path, name):
    write(raw / name, LAYOUTS[name])
    found = by_name(made(raw, tmp_path))
    for entry in entries():
        (one,) = found[entry["image"]]
        assert (one["question"], one["answers"]) == (entry["question"], [entry["answer"]])
        if name not in ("vizwiz.json", "chat.json"):
            assert str(one["id"]) == str(entry["question_id"])
    if name == "gqa.json":
        assert one["type"] == "verify"


def test_splits_are_drawn_by_picture_and_a_picture_keeps_all_its_questions(raw, tmp_path):
    write(raw / "list.json", [*entries(), *({**e, "question": f"Again {e['question']}"} for e in entries())])
    records = made(raw, tmp_path)
    assert {record["split"] for record in records} == {"train", "val", "test"}
    assert all(len(record["questions"]) == 2 for record in records) and len(records) == 24


@pytest.mark.parametrize("text,turns,question", [
    ("What is it?", [], "What is it?"),
    ("[USER] What is it? [ASSISTANT]", [], "What is it?"),
    ("[USER] <image> What is it? [ASSISTANT] A dog. [USER] Its colour? [ASSISTANT]", [("What is it?", "A dog.")],
     "Its colour?"),
    ("[USER]a[ASSISTANT]b[USER]c[ASSISTANT]d[USER]e", [("a", "b"), ("c", "d")], "e"),
    ("Look. [USER] What? [ASSISTANT]", [], "Look. What?"),
])  # fmt: skip
def test_tags_are_turns(text, turns, question):
    assert question_files.parse_tags(text) == (turns, question)


def test_each_turn_of_a_conversation_is_a_question_with_what_was_said_before(raw, tmp_path):
    talk = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Its colour?"},
            {"role": "assistant", "content": "Brown."}]  # fmt: skip
    write(raw / "talk.json", [{"id": f"t{n}", "image": name, "messages": talk} for n, name in enumerate(NAMES)])
    first, second = by_name(made(raw, tmp_path))[NAMES[0]]
    assert first == {"id": "t0-0", "question": "What is it?", "answers": ["A dog."]}
    assert second == {"id": "t0-1", "question": "Its colour?", "answers": ["Brown."],
                      "turns": [["What is it?", "A dog."]]}  # fmt: skip
    assert asking(second).texts() == ["What is it?", "A dog.", "Its colour?", "Brown."]


def test_weights_say_which_answer_is_learnt(raw, tmp_path):
    weighted = [{**e, "answer": ["no", "yes", "no"], "weights": [0.2, 0.5, 0.2]} for e in entries()]
    write(raw / "list.json", weighted)
    (one,) = by_name(made(raw, tmp_path))[NAMES[0]]
    assert one["weights"] == [0.2, 0.5, 0.2] and best_answer(one) == "yes"
    assert best_answer({key: one[key] for key in ("question", "answers")}) == "no", "by number without them"


def test_what_is_no_question_or_no_answer_is_told_and_left_out(raw, tmp_path, capsys):
    bad = [{"image": NAMES[0], "question": " ", "answer": "x"}, {"image": NAMES[1], "question": "What?", "answer": ""},
           {"image": NAMES[2], "question": "Who?", "answer": None}, {**entries()[3], "question_id": 900},
           {"image": NAMES[4], "question": "?!", "answer": "x"}, {"question": "Of what?", "answer": "x"}]  # fmt: skip
    write(raw / "list.json", [*entries(), *bad])
    with pytest.raises(ValueError, match=r"5 of 29 questions \(17.24 %\) cannot be used, above MAX_BAD_") as error:
        made(raw, tmp_path)
    assert "\n" not in str(error.value)
    from nanocaption.prepare.check import Rules

    assert len(made(raw, tmp_path, rules=Rules(max_bad_fraction=0.5))) == 24
    printed = capsys.readouterr().out
    for line in ("refused, answer empty: 2", "refused, question empty: 1", "said twice with the same answers: 1",
                 "no word in the question: 1", "1 entry (entry 30) without a picture or a question, left out"):
        assert line in printed, line


def test_a_picture_whose_questions_are_all_bad_and_one_that_cannot_be_read_are_told(raw, tmp_path, capsys):
    write(raw / "list.json", [*entries(23), {"image": NAMES[23], "question": "What?", "answer": " "}])
    (raw / "images" / NAMES[0]).write_bytes(b"no picture")
    from nanocaption.prepare.check import Rules

    assert len(made(raw, tmp_path, rules=Rules(max_bad_fraction=0.5))) == 22
    printed = capsys.readouterr().out
    assert "no question left: 1" in printed and "not a picture" in printed


def test_a_folder_of_questions_says_how_it_is_read_where_captions_are_wanted(raw, tmp_path):
    write(raw / "vizwiz.json", LAYOUTS["vizwiz.json"])
    with pytest.raises(ValueError, match=r"It holds questions \(list of questions\): read them with QUESTIONS = True"):
        prepare("mine", tmp_path / "data", raw_dir=raw)
    (raw / "vizwiz.json").unlink()
    write(raw / "a.json", {"some": "thing"})
    with pytest.raises(ValueError, match="holds no questions in a known layout: give it parquet") as error:
        made(raw, tmp_path)
    assert "\n" not in str(error.value)


def test_a_whole_set_is_taken_as_it_is_and_a_changed_source_is_told(raw, tmp_path):
    write(raw / "list.json", entries())
    first = made(raw, tmp_path)
    assert made(raw, tmp_path) == first
    write(raw / "list.json", [*entries(), {**entries()[0], "question": "More?"}])
    with pytest.raises(ValueError, match="the files of questions are others"):
        made(raw, tmp_path)
    assert sum(len(record["questions"]) for record in made(raw, tmp_path, remake=True)) == 25


def parquet_set(raw: Path, rows: list[dict]) -> Path:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    folder = raw.parent / "packed"
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000.parquet")
    return folder


def test_parquet_rows_of_one_picture_are_its_questions(raw, tmp_path, capsys):
    data = {name: (raw / "images" / name).read_bytes() for name in NAMES}
    rows = [{"image_bytes": data[name], "question": f"[USER] {text} [ASSISTANT]", "answer": "yes", "source": "pixmo"}
            for name in NAMES for text in ("Is it?", "Was it?")]  # fmt: skip
    rows += [{"image_bytes": None, "question": "Where?", "answer": "here", "source": "pixmo"},
             {"image_bytes": b"no picture", "question": "Where?", "answer": "here", "source": "pixmo"}]
    folder = parquet_set(raw, rows)
    from nanocaption.prepare.check import Rules

    records = made(folder, tmp_path, rules=Rules(max_bad_fraction=0.2))
    assert len(records) == 24 and {len(record["questions"]) for record in records} == {2}
    assert records[0]["questions"][0] == {"question": "Is it?", "answers": ["yes"], "source": "pixmo"}
    held = {(tmp_path / "data/mine/images" / record["file_name"]).read_bytes() for record in records}
    assert held == set(data.values())
    printed = capsys.readouterr().out
    assert "1 row (train-00000.parquet row 49) with an empty picture cell" in printed and "refused, not a pi" in printed
    with pytest.raises(ValueError, match=r"2 of 26 pictures \(7.69 %\) cannot be used") as error:
        made(folder, tmp_path / "other")
    assert "\n" not in str(error.value)


def test_chat_rows_of_parquet_have_many_turns_and_those_of_several_pictures_are_left_out(raw, tmp_path, capsys):
    data = [(raw / "images" / name).read_bytes() for name in NAMES]
    talk = [{"user": "What?", "assistant": "It.", "source": "s"}, {"user": "Why?", "assistant": "So.", "source": "s"}]
    rows = [{"images": [{"bytes": one, "path": "a.jpg"}], "texts": talk} for one in data]
    rows.append({"images": [{"bytes": data[0], "path": "b"}, {"bytes": data[1], "path": "c"}], "texts": talk})
    records = made(parquet_set(raw, rows), tmp_path)
    assert len(records) == 24
    assert records[0]["questions"][1] == {"question": "Why?", "answers": ["So."], "source": "s",
                                          "turns": [["What?", "It."]]}  # fmt: skip
    assert "1 row (train-00000.parquet row 25) about several pictures, left out" in capsys.readouterr().out


def test_pictures_without_a_question_are_told_where_the_set_is_read(raw, tmp_path, capsys):
    write(raw / "list.json", entries())
    made(raw, tmp_path)
    folder = tmp_path / "data" / "mine"
    text = (folder / "captions.json").read_text()
    first = load_records(folder, "train")[0]
    (folder / "captions.json").write_text(text.replace(json.dumps(first["questions"]), "[]"))
    capsys.readouterr()
    number = len(load_records(folder, "train"))
    assert len(load_questions(folder, "train")) == number - 1
    assert f"1 picture ({first['file_name']}) of {number} without a question, left out" in capsys.readouterr().out


def test_the_command_prepares_questions_and_training_reads_them(raw, tmp_path, capsys):
    import prepare_dataset

    write(raw / "list.json", entries())
    argv = ["--questions", "--dataset", "mine", "--raw-data-dir", str(raw), "--data-dir", str(tmp_path / "data")]
    assert run_command(prepare_dataset.main, argv) == 0
    assert "questions" in capsys.readouterr().out
    assert load_records(tmp_path / "data" / "mine", "train")[0]["captions"] == []
