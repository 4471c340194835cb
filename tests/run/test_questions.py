"""A run on the demo set's questions: it learns, resumes to the same bits, answers from the command and the page."""

import html
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
import nanocaption
import train
from nanocaption.base.settings import load_settings, take_settings
from nanocaption.commands import ask, caption, demo
from nanocaption.commands import export as export_command
from nanocaption.data.prepared import load_records
from nanocaption.data.questions import Asking, load_questions, questions_of
from nanocaption.data.transform import load_image
from nanocaption.model.answers import answer_log_probs
from nanocaption.model.options import Options
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import LAST
from nanocaption.score.answers import squad_text
from nanocaption.score.question_scores import score_answers
from nanocaption.score.split import load_split
from nanocaption.train import setup
from nanocaption.use import answering
from nanocaption.use.load import load_models
from tests.conftest import CUTOFF, tiny_flags
from tests.processes import rows

GREEDY = ["--beam-size", "1", "--min-length", "1"]  # it has learnt to say something, not yet much
HOW = ["--questions", "--num-epochs", "6", "--decoder-dropout", "0.1", "--keep-best", "9", "--captions-per-image", "8",
       "--learning-rate", "1e-2"]  # fmt: skip


@pytest.fixture(scope="module")
def asked_run(once, demo_data) -> Path:
    """The folder of a run of six epochs on questions; to be read only."""

    def train_it(folder: Path) -> None:
        train.main([*tiny_flags(demo_data, folder), *HOW, "--run-name", "run"])

    return once("questions", train_it) / "run"


@pytest.fixture(scope="module")
def pictures(demo_data) -> list[str]:
    return sorted(str(path) for path in (demo_data / "demo" / "images").iterdir())[-3:]


# --- training ---


def test_the_questions_of_the_set_are_what_is_trained_on(asked_run, demo_data, flags, capsys):
    train.main([*flags, *HOW, "--run-name", "again", "--num-epochs", "1"])
    printed = capsys.readouterr().out
    asked = load_questions(demo_data / "demo", "train")
    number = sum(len(record["questions"]) for record in asked)
    assert f"data: {CUTOFF} images with {number} questions; validation {CUTOFF}" in printed
    assert "questions answered rightly (greedy, 4 images)" in printed
    log = rows(asked_run, "val")
    assert 0 <= log[-1]["accuracy"] <= 1 and log[-1]["val_loss"] < log[0]["val_loss"] and "CIDEr" not in log[-1]
    assert sorted(path.name for path in (demo_data / "demo").glob("tokenizer*"))[-1] == "tokenizer_questions"
    assert load_records(demo_data / "demo", "train")[0].keys() == {"file_name", "split", "captions", "scene"}


def test_a_resumed_run_ends_with_the_same_bits(asked_run, flags, tmp_path, monkeypatch):
    (tmp_path / "runs" / "run").mkdir(parents=True)
    first = shutil.copy(next(asked_run.glob("checkpoint_epoch_1_*")), tmp_path / "runs" / "run")
    train.main([*flags, *HOW, "--resume-checkpoint-path", str(first)])
    whole, resumed = (checkpoint.load(run / LAST) for run in (asked_run, tmp_path / "runs" / "run"))
    for name, tensor in whole["model_state_dict"].items():
        assert torch.equal(tensor, resumed["model_state_dict"][name]), name
    assert rows(asked_run, "val")[-1] == rows(tmp_path / "runs" / "run", "val")[-1]
    halfway = checkpoint.load(first)["model_state_dict"]
    assert not all(torch.equal(tensor, halfway[name]) for name, tensor in whole["model_state_dict"].items())
    real = setup.digest_of
    monkeypatch.setattr(setup, "digest_of", lambda records: real(list(records)[1:]))
    with pytest.raises(SystemExit, match="The questions about the training pictures are not those of this run"):
        train.main([*flags, *HOW, "--resume-checkpoint-path", str(first)])
    with pytest.raises(SystemExit, match="QUESTIONS: True -> False"):
        train.main([*flags, *HOW, "--no-questions", "--resume-checkpoint-path", str(first)])


def test_a_run_may_begin_with_the_weights_of_a_captioner(flags, tiny_run_made, capsys):
    train.main([*flags, *HOW, "--num-epochs", "1", "--init-checkpoint-path", str(tiny_run_made / LAST)])
    assert "questions answered rightly" in capsys.readouterr().out


@pytest.mark.parametrize("more,said", [
    (["--objective", "scst", "--scst-start-epoch", "1"], "rewards are for captions"),
    (["--stream", "--raw-data-dir", "x"], "a streamed set has captions alone"),
    (["--max-seq-len", "5"], "needs 6 tokens at least"),
    (["--consensus", "5"], "it judges captions"),
])  # fmt: skip
def test_settings_that_do_not_go_with_questions_are_one_line(flags, more, said):
    with pytest.raises(SystemExit, match=said):
        train.main([*flags, *HOW, *more])


def test_questions_that_are_too_long_are_told_and_left_out(flags, capsys):
    train.main([*flags, *HOW, "--num-epochs", "1", "--max-seq-len", "15"])
    printed = capsys.readouterr().out
    assert "leave no room for an answer in MAX_SEQ_LEN = 15 tokens and are left out, the first is scene_" in printed
    with pytest.raises(ValueError, match="All .* questions of train are too long for MAX_SEQ_LEN = 6"):
        train.main([*flags, *HOW, "--num-epochs", "1", "--max-seq-len", "6"])


def test_a_set_without_questions_is_one_line(flags, demo_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(demo_data / "demo", data / "plain")
    rows_of_set = json.loads((data / "plain" / "captions.json").read_text())["images"]
    text = json.dumps({"images": [{k: v for k, v in row.items() if k != "scene"} for row in rows_of_set]})
    (data / "plain" / "captions.json").write_text(text)
    manifest = json.loads((data / "plain" / "manifest.json").read_text())
    from nanocaption.data.prepared import sha256_of

    manifest["captions_sha256"] = sha256_of(data / "plain" / "captions.json")
    (data / "plain" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no picture of the split 'train' has a question") as error:
        train.main([*flags, *HOW, "--data-dir", str(data), "--dataset", "plain"])
    assert "\n" not in str(error.value)


def test_captions_are_learnt_beside_as_answers_to_a_question_of_their_own(flags, demo_data, capsys):
    more = ["--num-epochs", "1", "--caption-question", "Describe the picture."]
    train.main([*flags, *HOW, *more, "--run-name", "both"])
    printed = capsys.readouterr().out
    asked = sum(len(record["questions"]) for record in load_questions(demo_data / "demo", "train"))
    assert "captions, train: 120 are learnt as answers to 'Describe the picture.'" in printed
    assert f"data: {CUTOFF} images with {asked + 120} questions" in printed
    val = load_questions(demo_data / "demo", "val")[:4]
    told = sum(len(record["questions"]) for record in val)
    assert f"of {told} questions answered rightly (greedy, 4 images)" in printed, "they are not among those scored"
    with pytest.raises(SystemExit, match="CAPTION_QUESTION = 'x' goes with QUESTIONS = True"):
        train.main([*flags, "--caption-question", "x"])
    with pytest.raises(SystemExit, match="CAPTION_QUESTION = '!' asks nothing"):
        train.main([*flags, *HOW, "--caption-question", "!"])


# --- asking ---


def test_ask_prints_the_answer_or_all_that_is_known_of_it(asked_run, pictures, tmp_path, capsys):
    flags = ["--checkpoint", str(asked_run / LAST), "--num-answers", "2"]
    assert ask.main([pictures[0], "What colour is the car?", *flags[:2]]) == 0
    (alone,) = capsys.readouterr().out.splitlines()
    assert ask.main([pictures[0], "How many dogs are there?", "What colour is the car?", *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["question"] for row in told] == ["How many dogs are there?", "What colour is the car?"]
    assert all(len(row["answers"]) == 2 and row["answers"][0]["log_prob"] < 0 for row in told)
    assert told[1]["answers"][0]["answer"] == alone
    assert ask.main([pictures[0], "How many dogs are there?", "What colour is the car?", *flags[:2]]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"What colour is the car? {alone}"
    drawn = tmp_path / "words.png"
    assert ask.main([pictures[0], "What colour is the car?", *flags[:2], "--attention", str(drawn)]) == 0
    with Image.open(drawn) as image:
        assert image.format == "PNG"


def test_mistakes_of_asking_are_one_line_each(asked_run, tiny_run_made, pictures):
    flags = ["--checkpoint", str(asked_run / LAST)]
    for argv, said in (
        (["missing.jpg", "What?", *flags], "There is no picture 'missing.jpg'"),
        ([pictures[0], "?!", *flags], "asks nothing"),
        ([pictures[0], "x" * 3000, *flags], "2,000 at most"),
        ([pictures[0], "What?", "--num-answers", "0", *flags], "must be 1 or more"),
        ([pictures[0], "What?", "Who?", "--attention", "a.png", *flags], "ask one question"),
        ([pictures[0], "What?", "--checkpoint", str(tiny_run_made / LAST)], "was not trained on questions"),
    ):
        with pytest.raises(SystemExit, match=said):
            ask.main(argv)
    with pytest.raises(ValueError, match="tokens, and the model reads at most 21") as error:
        ask.main([pictures[0], "is it there " * 20, *flags])
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="answers questions, it has learnt no captions"):
        caption.main([pictures[0], *flags])
    with pytest.raises(SystemExit, match="QUESTIONS: False -> True"):
        ask.main([pictures[0], "What?", "--checkpoint", str(tiny_run_made / LAST), "--questions"])


def test_an_exported_model_answers_as_its_checkpoint_does(asked_run, demo_data, pictures, tmp_path, capsys):
    folder = str(tmp_path / "export")
    export_command.main([str(asked_run / LAST), folder, "--data-dir", str(demo_data)])
    capsys.readouterr()
    card = (tmp_path / "export" / "README.md").read_text()
    assert "It answers questions about pictures" in card and "model.answer(" in card and "captioner:" not in card
    for form in ("transformers", "onnx"):
        with pytest.raises(SystemExit, match=f"--format {form} knows no questions"):
            export_command.main([str(asked_run / LAST), f"{folder}-{form}", "--format", form])
    questions = ["How many dogs are there?", "What colour is the car?"]
    ask.main([pictures[0], *questions, "--checkpoint", str(asked_run / LAST), "--json"])
    told = [row["answers"][0]["answer"] for row in json.loads(capsys.readouterr().out)]
    model = nanocaption.load(folder)
    assert model.answer(pictures[0], questions) == told
    assert model.answer(Path(pictures[0]), questions[1]) == told[1]
    assert len(model.answers(pictures[0], questions, num_beams=4, num_return_sequences=2)[0]) == 2
    with pytest.raises(ValueError, match="answers questions and has learnt no captions"):
        model.caption(pictures[0])
    with pytest.raises(ValueError, match="at least one word"):
        model.answer(pictures[0], "")
    with pytest.raises(ValueError, match="the model reads at most 21"):
        model.answer(pictures[0], "is it there " * 20)


def test_the_page_answers(asked_run, demo_data, pictures):
    own, _ = take_settings(["--data-dir", str(demo_data)])
    loaded = load_models([asked_run / LAST], load_settings(own))
    how = {"beams": 2, "number": 2, "temperature": 1.0}
    found = demo.find_captions(loaded, Path(pictures[0]), question="How many dogs are there?", **how)
    assert [len(kind) for kind in found] == [2, 2, 4]
    page = demo.result_html(loaded, Path(pictures[0]), question="How many dogs are there?", **how)
    assert "the probability of the whole answer" in page and page.count("<li>") >= 2
    assert 'role="alert"' in demo.result_html(loaded, Path(pictures[0]), question=" ", **how)
    told = demo.answer(loaded, "title", Path(pictures[0]), 2, 3, "How many dogs are there?")
    assert told["question"] == "How many dogs are there?" and len(told["answers"]) == 2
    assert told["answers"][0]["answer"] == found.beam[0].text
    with pytest.raises(ValueError, match="asks nothing"):
        demo.answer(loaded, "title", Path(pictures[0]), 2, 3, "")


# --- scores ---


@pytest.fixture(scope="module")
def evaluated(asked_run, demo_data, tmp_path_factory) -> Path:
    """The results folder of the run's answers to the test split."""
    output = tmp_path_factory.mktemp("eval") / "out"
    flags = ["--checkpoint", str(asked_run / LAST), "--data-dir", str(demo_data), "--output", str(output)]
    evaluate.main([*flags, *GREEDY])
    return output


def test_scores_are_those_of_the_answers_with_controls_beside_them(evaluated, demo_data, asked_run):
    scores, answers = (json.loads((evaluated / f"{name}.json").read_text()) for name in ("scores", "predictions"))
    records = load_questions(demo_data / "demo", "test")
    right = {question["id"]: question["answers"] for record in records for question in record["questions"]}
    assert [row["question_id"] for row in answers] == list(right)
    share = sum(squad_text(row["answer"]) in right[row["question_id"]] for row in answers) / len(answers)
    assert scores["corpus"]["accuracy"] == pytest.approx(share) and scores["rule"] == "exact"
    low, high = scores["intervals"]["accuracy"]
    assert low < share < high and scores["questions"] == len(right) and scores["images"] == CUTOFF
    for parts in (scores["question_types"], scores["answer_types"]):
        assert sum(part["accuracy"] * part["questions"] for part in parts.values()) / len(right) == pytest.approx(share)
    assert set(scores["question_types"]) == {"colour", "count", "relation", "is there"}
    assert set(scores["answer_types"]) == {"yes/no", "number", "other"}
    assert set(scores["controls"]) == {"most frequent answer of the type", "pictures shuffled"}
    assert not list(evaluated.glob("captions-*")), "what was kept for a second start is gone"
    loaded = load_models([asked_run / LAST], load_settings(["--data-dir", str(demo_data)]))
    path, first = demo_data / "demo" / "images" / records[0]["file_name"], records[0]["questions"][0]["question"]
    greedy = ask.answer(loaded, path, ask.read_questions([first], "keep"), Options(min_length=1), 1)
    assert answers[0]["answer"] == greedy[0][0].text


def test_the_page_shows_questions_answers_and_where_the_model_looked(evaluated):
    page = (evaluated / "report.html").read_text()
    questions = json.loads((evaluated / "questions.json").read_text())
    shown = [row for row in questions if f"<em>{html.escape(row['question'])}</em>" in page]
    assert len(shown) > 20 and "Most frequent mistakes" in page and "pictures shuffled" in page
    assert "data-maps=" in page and "By question type" in page and "right: " in page
    assert "Best right first" in page and "CIDEr</span>" not in page


def test_a_stopped_evaluation_goes_on_and_ends_the_same(asked_run, demo_data, evaluated, tmp_path, monkeypatch, capsys):
    flags = ["--checkpoint", str(asked_run / LAST), "--data-dir", str(demo_data), "--output", str(tmp_path / "out"),
             *GREEDY, "--eval-batch-size", "40"]  # fmt: skip
    real, calls = answering.answer_questions, []

    def stops(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(answering, "answer_questions", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(flags)
    assert list((tmp_path / "out").glob("captions-*"))
    evaluate.main(flags)
    assert "from a start that was stopped" in capsys.readouterr().out
    for name in ("predictions", "questions"):
        assert (tmp_path / "out" / f"{name}.json").read_text() == (evaluated / f"{name}.json").read_text()


def test_anyones_answers_are_scored(evaluated, demo_data, tmp_path, capsys):
    answers = json.loads((evaluated / "predictions.json").read_text())
    own = json.loads((evaluated / "scores.json").read_text())["corpus"]
    forms = {
        "a.json": json.dumps([{"question_id": row["question_id"], "answer": row["answer"]} for row in answers]),
        "b.json": json.dumps({row["question_id"]: row["answer"] for row in reversed(answers)}),
        "c.jsonl": "\n".join(json.dumps(row) for row in answers),
    }
    common = ["--questions", "--data-dir", str(demo_data), "--predictions"]
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        evaluate.main([*common, str(tmp_path / name), "--output", str(tmp_path / f"out-{name}")])
        found = json.loads((tmp_path / f"out-{name}" / "scores.json").read_text())
        assert found["corpus"] == own and set(found["controls"]) == {"most frequent answer of the type"}
    for name, rows_of, said in (
        ("d.json", answers[:-2], "has no answer to 2 questions"), ("e.json", [*answers, answers[0]], "answered twice"),
        ("f.json", [*answers, {"question_id": "x", "answer": "y"}], "to questions that the split does not have"),
        ("g.json", [1, 2], "is not of the form of answers"), ("h.json", "", "is not of the form"),
    ):  # fmt: skip
        (tmp_path / name).write_text(json.dumps(rows_of))
        with pytest.raises(ValueError, match=said) as error:
            evaluate.main([*common, str(tmp_path / name)])
        assert "\n" not in str(error.value)
    capsys.readouterr()
    evaluate.main([*common, str(tmp_path / "d.json"), "--only-predicted", "--output", str(tmp_path / "part")])
    said = f"{len(answers) - 2} of the {len(answers)} questions of test are answered in d.json"
    assert said in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--compare is for captions"):
        evaluate.main(["--questions", "--data-dir", str(demo_data), "--compare", *[str(evaluated)] * 2])


def test_choices_are_scored_by_the_likelihood_of_their_letters(asked_run, demo_data):
    loaded = load_models([asked_run / LAST], load_settings(["--data-dir", str(demo_data)]))
    split = load_split(loaded.settings, "test", loaded.states[0]["config"])
    listed = ("Which? Options: A: red, B: blue", "Which? Options: A: a, B: b, C: c")
    records = [record | {"questions": [{"question": text, "answers": ["B"]} for text in listed[: 1 + n % 2]]}
               for n, record in enumerate(split.records[:5])]  # fmt: skip
    letters = answering.choose_letters(loaded, split._replace(records=records))
    flat = [(demo_data / "demo" / "images" / record["file_name"], question["question"])
            for record in records for question in record["questions"]]  # fmt: skip
    for (path, text), letter in zip(flat, letters, strict=True):
        pixels = load_image(path, loaded.models[0].image_spec)[None]
        asked = [(0, Asking(text, one)) for one in ("ABC" if "C:" in text else "AB")]
        values = answer_log_probs(loaded.models[0], loaded.tokenizer, pixels, asked)
        assert asked[values.index(max(values))][1].answer == letter
    scores, _ = score_answers(records, ["B"] * 7, likeliest=letters)
    assert scores["rule"] == "choice" and scores["corpus"]["accuracy"] == 1
    assert scores["corpus"]["by_likelihood"] == letters.count("B") / 7
    assert answering.choose_letters(loaded, split) is None, "these list no options"


def test_questions_of_drawn_pictures_have_ids_and_types_of_their_own(demo_data):
    records = load_records(demo_data / "demo", "test")
    ids = [question["id"] for record in records for question in questions_of(record)]
    assert len(ids) == len(set(ids)) > 100 and ids[0].startswith("scene_")
    assert questions_of({"file_name": "a.jpg", "split": "train", "captions": ["x"]}) == []
