"""Settings: what is accepted, in which order, and that every mistake is told at once, in one line each."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from nanocaption.base import rules, settings
from nanocaption.base.settings import (
    RESUME_SETTINGS,
    declared_settings,
    differences,
    load_settings,
    take_settings,
    unchanged_since,
)
from tests.conftest import ROOT

CONSTANTS = declared_settings().constants  # cached: changed here, changed for load_settings



def refusal(*argv: str) -> list[str]:
    """The lines of the refusal of these arguments, without its heading."""
    with pytest.raises(SystemExit) as caught:
        load_settings(list(argv))
    heading, *lines = str(caught.value).splitlines()
    assert heading == "Settings are not right:"
    return lines


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(text)
    return str(path)


def test_constants_recipe_and_flags_apply_in_this_order(tmp_path):
    text = "BATCH_SIZE = 20\nNUM_EPOCHS = 3\nSEED = 5\n"
    settings = load_settings(
        [recipe(tmp_path, text), "--num-epochs", "4"]).on({"SEED": 9, "KEEP_BEST": 7, "BATCH_SIZE": 10}
    )
    assert settings.KEEP_BEST == 7  # base over constant
    assert (settings.BATCH_SIZE, settings.SEED) == (20, 5)  # recipe over base
    assert settings.NUM_EPOCHS == 4  # flag over recipe
    assert dict(load_settings([]).values) == CONSTANTS  # nothing was changed for good


def test_base_may_come_from_json_and_from_an_older_program():
    settings = load_settings([]).on({"ADAM_BETAS": [0.5, 0.6], "A_SETTING_OF_THE_PAST": 1})
    assert settings.ADAM_BETAS == (0.5, 0.6)
    assert not hasattr(settings, "A_SETTING_OF_THE_PAST")


def test_splits_are_names_and_each_has_one_use(tmp_path):
    assert load_settings([]).on({"TRAIN_SPLITS": ["train", "restval"]}).TRAIN_SPLITS == ("train", "restval")
    text = "TRAIN_SPLITS = 'train'\nVAL_SPLITS = ()\nTEST_SPLITS = ('test', 2)\n"
    assert all("must be one name or more, e.g. train,restval" in line for line in refusal(recipe(tmp_path, text)))
    assert "must be one name or more" in refusal("--val-splits", "val,")[0]
    lines = refusal("--train-splits", "train,val,test")
    assert ["VAL_SPLITS and TRAIN_SPLITS both name val" in lines[0], "both name test" in lines[1]] == [True, True]
    load_settings(["--test-splits", "val"])  # to look at, not to choose by: the report says which split it is


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        load_settings([]).BATCH_SIZE = 3


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--log-wandb"], "LOG_WANDB", True),
        (["--no-cache-features"], "CACHE_FEATURES", False),
        (["--data-cutoff", "5"], "DATA_CUTOFF", 5),
        (["--encoder-learning-rate", "none"], "ENCODER_LEARNING_RATE", None),
        (["--run-name", "None"], "RUN_NAME", None),
        (["--dataset", "none"], "DATASET", "none"),  # a text that cannot be None stays a text
        (["--adam-betas", "0.8,0.9"], "ADAM_BETAS", (0.8, 0.9)),
        (["--train-splits", "train, restval"], "TRAIN_SPLITS", ("train", "restval")),
        (["--test-splits=val"], "TEST_SPLITS", ("val",)),
        (["--learning-rate=2e-3"], "LEARNING_RATE", 2e-3),
        (["--warmup-lr", "0"], "WARMUP_LR", 0.0),
        (["--lr-schedule", "step"], "LR_SCHEDULE", "step"),
        (["--device", "cuda:1"], "DEVICE", "cuda:1"),
    ],
)
def test_a_flag_is_read_as_the_type_of_its_setting(argv, name, value):
    got = getattr(load_settings(argv), name)
    assert got == value and type(got) is type(value)


def test_a_whole_number_serves_where_a_fraction_is_meant(tmp_path):
    settings = load_settings([recipe(tmp_path, "LEARNING_RATE = 1\nENCODER_LEARNING_RATE = 0\n")])
    assert type(settings.LEARNING_RATE) is float and type(settings.ENCODER_LEARNING_RATE) is float


def test_a_setting_in_small_letters_is_no_silent_nothing(tmp_path):
    lines = refusal(recipe(tmp_path, "num_epochs = 3\nBatch_Size = 4\nhelper = 5\nLR = 3\n"))
    assert len(lines) == 3 and "num_epochs is not a setting; did you mean NUM_EPOCHS?" in "\n".join(lines)
    assert "LR is not a setting; did you mean LEARNING_RATE?" in "\n".join(lines)


def test_lines_of_config_py_that_lost_their_type_or_their_name_are_told(tmp_path, monkeypatch):
    text = (ROOT / "config.py").read_text()
    for old, new in (("BATCH_SIZE: int |", "BATCH_SIZE = 80  #"), ("DECODER_HEADS: int", "DECODERHEADS"),
                     ("SEED: int = 1", "SEED: int = 1\nLERNING_RATE = 3")):  # fmt: skip
        assert text.count(f"\n{old}") == 1
        text = text.replace(f"\n{old}", f"\n{new}")
    (tmp_path / "config.py").write_text(text)
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as refused:
        settings.declared_settings.__wrapped__()
    assert str(refused.value).splitlines() == [
        "config.py is not right:",
        "  - DECODERHEADS is not a setting; did you mean DECODER_HEADS?",
        "  - LERNING_RATE is not a setting; did you mean LEARNING_RATE?",
        "  - BATCH_SIZE has lost its type: write BATCH_SIZE: <type> = 80, with the type that stood there",
        "  - DECODER_HEADS is missing: put its line back",
    ]


def test_an_own_config_py_in_the_present_folder_comes_before_the_installed_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "config.py"
    own.write_text("NUM_EPOCHS = 3\nLEARNING_RATE: float = 1\n")
    found = load_settings(["--learning-rate", "0.5"])
    assert (3, 0.5, CONSTANTS["SEED"]) == (found.NUM_EPOCHS, found.LEARNING_RATE, found.SEED)
    assert found.constants["LEARNING_RATE"] == 1.0 and load_settings([]).LEARNING_RATE == 1.0
    own.write_text("NUM_EPOCHS = 'three'\n")
    with pytest.raises(SystemExit, match="NUM_EPOCHS = 'three': must be a whole number"):
        load_settings([])
    own.write_text("NUM_EPOCHS = 3\nLERNING_RATE = 1\n")
    with pytest.raises(SystemExit, match="LERNING_RATE is not a setting; did you mean LEARNING_RATE?"):
        load_settings([])


def test_a_config_py_of_another_program_is_not_even_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in ("raise SystemExit('run')\nDEBUG = True\nSEED = 3\n", "this is no Python", "import nowhere_there\n"):
        (tmp_path / "config.py").write_text(text)
        assert dict(load_settings([]).values) == CONSTANTS
    assert capsys.readouterr().err.endswith("config.py is taken for another program's (DEBUG): not used\n")


def test_an_own_config_py_is_named_and_one_that_is_no_python_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "config.py"
    own.write_text("NUM_EPOCHS = 3\n")
    assert load_settings([]).NUM_EPOCHS == load_settings([]).NUM_EPOCHS == 3
    assert capsys.readouterr().err == f"settings: {own} comes before the one in {settings.ROOT}\n"
    own.write_text("DATASET = 'mine'\nNUM_EPOCHS = 1 epoch\n")
    with pytest.raises(SystemExit, match=r"config.py, line 2: invalid syntax. It is read for its settings"):
        load_settings([])


def test_all_problems_are_told_at_once(tmp_path):
    path = recipe(tmp_path, "BATCH_SIZ = 4\nLR_SCHEDULE = 'cosin'\nFREEZE_ENCODER = 1\nSEED = True\n")
    lines = refusal(path, "--num-epochs", "many", "--warmup-steps", "-1", "--adam-betas", "0.9")
    text = "\n".join(lines)
    assert len(lines) == 7
    assert "BATCH_SIZ is not a setting; did you mean BATCH_SIZE?" in text and path in text
    assert "LR_SCHEDULE = 'cosin': must be one of 'constant', 'linear', 'cosine', 'step'" in text
    assert "FREEZE_ENCODER = 1: must be True or False" in text
    assert "SEED = True: must be a whole number" in text
    assert "NUM_EPOCHS = 'many': must be a whole number" in text
    assert "WARMUP_STEPS = -1: must be 0 or more" in text
    assert "ADAM_BETAS = (0.9,): must be 2 numbers" in text


def test_an_unknown_flag_names_the_nearest_and_its_value_is_not_taken_for_a_recipe():
    lines = refusal("--batch_size", "64", "--learning-rte=1", "--zzz")
    assert any("--batch_size is not a flag; did you mean --batch-size?" in line for line in lines)
    assert any("did you mean --learning-rate?" in line for line in lines)
    assert any("--zzz is not a flag; `python train.py --help`" in line for line in lines)
    assert len(lines) == 3
    assert "one word too many" in refusal("a.py", "b.py")[-1]


def test_a_recipe_that_is_missing_or_broken_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^There is no recipe 'nowhere.py'.*$"):
        load_settings(["nowhere.py"])
    with pytest.raises(SystemExit, match=r"recipe.py does not run: ZeroDivisionError: division by zero$"):
        load_settings([recipe(tmp_path, "SEED = 1 / 0")])


def test_a_recipe_builds_on_others_and_says_where_one_is_missing_or_leads_in_a_circle(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "base.py").write_text("SEED = 1\nNUM_EPOCHS = 2\nBATCH_SIZE = 3\n")
    (tmp_path / "more" / "middle.py").write_text("BASE_RECIPE = '../base.py'\nNUM_EPOCHS = 5\nBATCH_SIZE = 6\n")
    settings = load_settings([recipe(tmp_path, "BASE_RECIPE = 'more/middle.py'\nBATCH_SIZE = 7\n")])
    assert dict(settings.changes) == {"SEED": 1, "NUM_EPOCHS": 5, "BATCH_SIZE": 7}
    (tmp_path / "base.py").write_text("BASE_RECIPE = 'recipe.py'\n")
    with pytest.raises(SystemExit, match=r"^BASE_RECIPE leads from .*recipe.py back to itself: .*$"):
        load_settings([str(tmp_path / "recipe.py")])
    with pytest.raises(SystemExit, match=r"^There is no recipe .*nowhere.py, which BASE_RECIPE names"):
        load_settings([recipe(tmp_path, "BASE_RECIPE = 'nowhere.py'\n")])
    assert "base_recipe is not a setting" in refusal(recipe(tmp_path, "base_recipe = 'base.py'\n"))[0]


def test_a_wrong_constant_is_told_as_well(monkeypatch):
    monkeypatch.setitem(CONSTANTS, "BATCH_SIZE", "eighty")
    assert refusal("--seed", "x") == [
        "  - BATCH_SIZE = 'eighty': must be a whole number or one of 'auto'",
        "  - SEED = 'x': must be a whole number",
    ]
    monkeypatch.setitem(CONSTANTS, "BATCH_SIZE", 80.0)
    assert refusal() == ["  - BATCH_SIZE = 80.0: must be a whole number or one of 'auto'"]


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("--vocab-size 259", "--vocab-size 260"),
        ("--max-seq-len 2", "--max-seq-len 3"),
        ("--decoder-heads 3", "--decoder-heads 8"),
        ("--decoder-heads 0", "--decoder-heads 1"),
        ("--vit-heads 3", "--vit-heads 2"),
        ("--vit-heads 0", "--vit-heads 1"),
        ("--vit-patch-size 0", "--vit-patch-size 4"),
        ("--image-size 60", "--image-size 72"),
        ("--vit-patch-size 12 --image-size 96", "--vit-patch-size 12 --image-size 96 --vit-stem patch"),
        ("--batch-size 4", "--batch-size 4 --captions-per-image 4"),
        ("--min-lr 0.1", "--min-lr 0.1 --learning-rate 0.1"),
        ("--adam-betas 0.9,1", "--adam-betas 0,0.999"),
        ("--pad-token-id 7", "--pad-token-id 0"),
        ("--freeze-encoder", "--freeze-encoder --encoder-model-name a/b"),
        ("--device gpu", "--device cuda"),
        ("--device cuda:x", "--device cuda:3"),
        ("--device cuda:", "--device mps"),
        ("--device auto:1", "--device auto"),
        ("--device cpu:3", "--device cpu"),
        ("--dataset a/b", "--dataset a.b"),
        ("--run-name ..", "--run-name b-2"),
        ("--learning-rate nan", "--learning-rate 1"),
        ("--learning-rate 0", "--learning-rate 1"),
        ("--decoder-dropout 1", "--decoder-dropout 0"),
        ("--warmup-ratio 1.5", "--warmup-ratio none"),
        ("--length-penalty inf", "--length-penalty 0"),
        ("--min-length -1", "--min-length 0"),
        ("--min-length 39", "--min-length 38"),
        ("--min-length 5 --max-seq-len 6", "--min-length 4 --max-seq-len 6"),
        ("--no-repeat-ngram -1", "--no-repeat-ngram 3"),
        ("--data-cutoff 0", "--data-cutoff none"),
    ],
)
def test_each_rule_refuses_and_lets_pass(wrong, right):
    name = wrong.split()[0].removeprefix("--").replace("-", "_").upper()
    lines = refusal(*wrong.split())
    assert any(name in line or name.replace("_TOKEN", "") in line or "PAD, START" in line for line in lines)
    load_settings(right.split())


def test_every_numeric_setting_has_a_range():
    kinds = {name: typing.get_args(kind) or (kind,) for name, kind in settings.declared_settings().types.items()}
    numeric = {name for name, options in kinds.items() if {int, float} & set(options)}
    checks = rules
    ruled = {*checks._AT_LEAST_ONE, *checks._NOT_NEGATIVE, *checks._ABOVE_ZERO, *checks._FRACTIONS}
    in_cross_rules = {"VOCAB_SIZE", "ADAM_BETAS", "PAD_TOKEN_ID", "START_TOKEN_ID", "END_TOKEN_ID", "UNK_TOKEN_ID",
                      "RANDOM_CROP_AREA", "MAX_BAD_FRACTION"}  # fmt: skip
    assert numeric - ruled - in_cross_rules == set()
    assert ruled | set(RESUME_SETTINGS) <= set(CONSTANTS)


def test_every_setting_stands_in_a_section_with_a_comment():
    comments = {name: text for names in settings.declared_settings().sections.values() for name, text in names.items()}
    assert list(comments) == list(CONSTANTS)
    assert [name for name, text in comments.items() if not text] == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads(path):
    load_settings([str(path)])


def test_help_lists_every_flag_and_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for name in CONSTANTS:
        assert "--" + name.lower().replace("_", "-") in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported  # the report is what it is taken for
    assert not imported & {"torch", "numpy", "PIL", "transformers", "tokenizers", "wandb", "tqdm"}


def test_a_flag_without_its_value_does_not_print_all_flags(capsys):
    with pytest.raises(SystemExit):
        load_settings(["--batch-size"])
    text = capsys.readouterr().err
    assert "--batch-size" in text and len(text.splitlines()) <= 2


def test_unchanged_since_and_differences_see_through_json(monkeypatch):
    saved = json.loads(json.dumps(CONSTANTS))
    assert unchanged_since(load_settings([]), saved) == set(CONSTANTS)
    monkeypatch.setitem(CONSTANTS, "ADAM_BETAS", (0.9, 0.99))
    monkeypatch.setitem(CONSTANTS, "SEED", 3)
    del saved["KEEP_BEST"]
    assert set(CONSTANTS) - unchanged_since(load_settings([]), saved) == {"ADAM_BETAS", "SEED", "KEEP_BEST"}
    assert differences(load_settings([]), saved, ("ADAM_BETAS", "SEED", "BATCH_SIZE")) == [
        "ADAM_BETAS: [0.9, 0.98] -> (0.9, 0.99)",
        "SEED: 1 -> 3",
    ]


def test_the_short_name_of_a_flag_serves_wherever_the_long_one_does():
    for flag in ("--lr", "--learning-rate"):
        assert load_settings([flag, "2e-3"]).LEARNING_RATE == 2e-3
    assert take_settings(["a.jpg", "--lr", "2e-3", "--lr=1", "--json"]) == (
        ["--lr", "2e-3", "--lr=1"], ["a.jpg", "--json"],
    )  # fmt: skip
    text = settings._parser(declared_settings()).format_help()
    assert "--learning-rate" in text and "--lr " in text
    assert refusal("--lr", "fast") == ["  - LEARNING_RATE = 'fast': must be a number"]
    assert set(settings._SHORT.values()) <= set(CONSTANTS)


def test_each_switch_says_yes_by_its_name_and_no_with_no_before_it():
    """Argparse's BooleanOptionalAction takes --no-bad-endings, the yes of NO_BAD_ENDINGS, for a no."""
    switches = [name for name, kind in declared_settings().types.items() if kind is bool]
    assert {"NO_BAD_ENDINGS", "COMPILE"} <= set(switches)
    for name in switches:
        flag = name.lower().replace("_", "-")
        for word, value in ((f"--{flag}", True), (f"--no-{flag}", False)):
            own, rest = take_settings([word])
            assert (own, rest) == ([word], [])
            needed = {"FREEZE_ENCODER": ["--encoder-model-name", "vit"], "STREAM": ["--raw-data-dir", "shards"]}
            assert getattr(load_settings([*own, *needed.get(name, [])]), name) is value, word
