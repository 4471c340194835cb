"""Languages without spaces between words: told where PTB would give 0, and scored by characters where asked for."""

import contextlib
import io
import json
import random
import unicodedata
import warnings

import pytest

from nanocaption import metrics
from nanocaption.commands.score import main as score_main
from nanocaption.metrics import character_tokenize, ptb_tokenize
from nanocaption.metrics.characters import without_spaces

NOUNS, VERBS = "狗猫人孩子车马鸟鱼船球", "跑坐站走看吃玩飞睡笑"


def chinese_set(separator: str = "") -> tuple[dict[str, list[str]], dict[str, str]]:
    rng = random.Random(1)

    def sentence() -> str:
        letters = f"一只{rng.choice(NOUNS)}在{rng.choice(NOUNS)}旁边{rng.choice(VERBS)}着{rng.choice(NOUNS)}"
        return separator.join(letters)

    names = [f"{number}.jpg" for number in range(120)]
    return {name: [sentence() for _ in range(3)] for name in names}, {name: sentence() for name in names}


def field_scores(references: dict[str, list[str]], candidates: dict[str, str]) -> dict[str, float]:
    """pycocoevalcap's CIDEr and BLEU of texts whose tokens stand between spaces."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    said = {name: [text] for name, text in candidates.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        four, _ = bleu.Bleu(4).compute_score(references, said)
        return {"CIDEr": float(cider.Cider().compute_score(references, said)[0]), "Bleu_1": four[0], "Bleu_4": four[3]}


def test_chinese_scores_nothing_with_ptb_and_says_so_and_its_value_by_characters():
    references, candidates = chinese_set()
    with pytest.warns(UserWarning, match=r"100% of the references .* --tokenize characters"):
        assert metrics.score(references, candidates)["CIDEr"] < 0.01
    expected = field_scores(*chinese_set(" "))
    found = metrics.score(references, candidates, character_tokenize)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert expected["CIDEr"] > 0.5 and expected["Bleu_4"] > 0.2
    apart, said = chinese_set(" ")
    assert metrics.score(apart, said)["CIDEr"] == pytest.approx(found["CIDEr"])  # words set apart: PTB does, no warning


def test_the_command_warns_and_takes_the_flag_and_the_signature_names_it(tmp_path, capsys):
    references, candidates = chinese_set()
    paths = [tmp_path / "references.json", tmp_path / "said.json"]
    for path, content in zip(paths, (references, candidates), strict=True):
        path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="these scores say nothing"):
        score_main(list(map(str, paths)))
    assert "PTB tokens" in capsys.readouterr().out
    score_main([*map(str, paths), "--tokenize", "characters", "--json", str(tmp_path / "out.json")])
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert "characters as tokens" in out and "PTB tokens" not in found["signature"]
    assert found["CIDEr"] == pytest.approx(field_scores(*chinese_set(" "))["CIDEr"], abs=1e-9)
    assert "mean_length 10.0000" in " ".join(out.split())
    score_main([*map(str, paths), "--compare", str(paths[1]), "--tokenize", "characters"])
    assert "characters as tokens" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "tokens"), [
    ("一只狗在跑。", "一 只 狗 在 跑 。"),
    ("A dog's T-shirt 说你好, 3 times.", "a dog 's t-shirt 说 你 好 3 times"),
    ("犬がボールで遊ぶ", "犬 が ボ ー ル で 遊 ぶ"),
    (unicodedata.normalize("NFD", "ボール"), "ボ ー ル"),
    ("หมาวิ่งที่", "ห ม า วิ่ ง ที่"),
    ("ខ្ញុំ", "ខ្ ញុំ"),
    ("\U00020000\U00020001", "\U00020000 \U00020001"),  # rare characters, which PTB drops
    ("고양이가 달린다", "고양이가 달린다"),
    ("", ""),
])  # fmt: skip
def test_letters_of_scripts_without_spaces_stand_alone_with_their_marks(text, tokens):
    assert character_tokenize([text, "a dog"]) == [tokens, "a dog"]


def test_captions_without_such_letters_are_left_to_ptb():
    captions = ["I like plan b.", "Two men - one's old - sit.", "naïve café", "The U.S. team 1/2", "кот"]
    assert character_tokenize(captions) == ptb_tokenize(captions)


@pytest.mark.parametrize(("caption", "told"), [
    ("一只狗在跑", True), ("หมาวิ่งเล่นอยู่ในสวน", True), ("หมาวิ่งเล่นอยู่ในสวน กับเด็กผู้ชายสองคน", True),
    ("犬が走っている。", True), ("ឆ្កែកំពុងរត់", True), ("A dog.", False),
    ("一只 狗 在 跑", False), ("หมา วิ่ง เล่น ใน สวน", False), ("犬 が 走って いる", False),
    ("a sign that reads 東京駅", False), ("개가 달린다", False), ("собака бежит", False), ("", False),
])  # fmt: skip
def test_which_captions_are_without_spaces(caption, told):
    assert without_spaces([caption]) == told


def test_a_set_in_two_languages_is_warned_of_and_a_few_foreign_words_are_not():
    english = {number: ["a dog runs", "the dog is running"] for number in range(50)}
    said = dict.fromkeys(english, "a dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.score(english | {0: ["一只狗在跑", "a dog"]}, said)
    both = {number: [*texts, "一只狗在跑"] for number, texts in english.items()}
    with pytest.warns(UserWarning, match="33% of the references"):
        metrics.score(both, said)


def test_broken_texts_are_counted():
    assert metrics.text_statistics(["a dog", "a caf\ufffd", "\ufffd\ufffd"]).broken == 2
