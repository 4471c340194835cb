"""Self-critical training: the gradient is that of the expected reward, the reward cannot be had by fragments."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanocaption.base.settings import load_settings
from nanocaption.data.dataset import Batch, padded
from nanocaption.data.packing import find_places
from nanocaption.data.tokenizer import END, PAD, START
from nanocaption.metrics import ptb_tokenize
from nanocaption.metrics.scores import bleu_rewards, cider_rewards, prepare_references
from nanocaption.model.decode import Caption
from nanocaption.train import scst, setup
from nanocaption.train.losses import LossInParts, token_loss
from nanocaption.train.patches import drop_patches
from nanocaption.train.rewards import Earned, earn, make_rewards
from tests.unit.model.test_model import pictures, tiny

# --- the policy gradient ---

WORDS = (END, 4, 5)  # all that the tiny policy may say
MOST = 2  # tokens


def sequences() -> list[list[int]]:
    """Every caption of at most MOST tokens: [], [w] and, cut at the limit, [v, w]; without <end>."""
    longer = [list(ids) for ids in itertools.product(WORDS[1:], repeat=MOST)]
    return [[], [4], [5], *longer]


def policy():
    """A model that can say nothing but WORDS: 2 pictures, float64."""
    model = tiny(vocab_size=6, MAX_SEQ_LEN=MOST + 1)
    return model, pictures(2)


def log_prob(model, images, ids: list[int], image: int) -> torch.Tensor:
    """By the ordinary forward pass over one caption."""
    whole = [START, *ids, *[END] * (len(ids) < MOST)]
    logits = model(images[image : image + 1], torch.tensor([whole[:-1]]))[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(whole[1:])[:, None]).sum()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed_gradient(model, images, drawn, earned: np.ndarray) -> dict[str, torch.Tensor]:
    """That of the batch which a step makes of drawn captions, times its number of tokens."""
    model.zero_grad()
    batch = Batch(images, *[torch.zeros(0)] * 3, None)
    made = scst._as_batch(drawn, Earned(earned, *[np.zeros(0)] * 3), batch, MOST)
    objective = scst.scst_objective(0.0, 0.1)
    assert objective.number(made) == sum(len(c.ids) + (len(c.ids) < MOST) for own in drawn for c in own)
    objective.total(model, made._replace(advantages=made.advantages.double())).backward()
    return gradients(model)


def test_the_packed_gradient_is_that_of_the_expected_reward():
    """Over all pairs of captions, each times its probability: the mean of the estimator itself, no sampling noise.

    The policy is the model's distribution over whole captions, V = 3 words and at most 2 tokens, renormalised over the
    words that it may say.
    """
    model, images = policy()
    every = sequences()
    worth = np.random.default_rng(0).random((2, len(every)))
    logs = torch.stack([torch.stack([log_prob(model, images, ids, n) for ids in every]) for n in (0, 1)])
    mass = logs.exp().sum(1)
    model.zero_grad()
    # The gradient of sum_c p(c) r(c), baseline or not, within this set of captions: sum p (r - mean r) grad log p.
    p = (logs.exp() / mass[:, None]).detach()
    reward = torch.from_numpy(worth)
    expected = (p * (reward - (p * reward).sum(1, keepdim=True)) * logs).sum()
    (-expected).backward()
    expected = gradients(model)

    found: dict[str, torch.Tensor] = {}
    for n in (0, 1):
        for a, b in itertools.product(range(len(every)), repeat=2):
            chance = (p[n, a] * p[n, b]).item()
            drawn = [[Caption(every[c], 0.0, 0.0) for c in (a, b)]]
            own = packed_gradient(model, images[n : n + 1], drawn, worth[n, [a, b]])
            for name, gradient in own.items():
                # The mean over the K captions estimates it; the batch sums them.
                found[name] = found.get(name, 0) + chance * gradient / 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)
    # Controls: rewards of the wrong captions, and an <end> whose gradient is lost.
    other = packed_gradient(model, images[:1], [[Caption([4], 0, 0), Caption([], 0, 0)]], np.array([0.0, 1.0]))
    right = packed_gradient(model, images[:1], [[Caption([4], 0, 0), Caption([], 0, 0)]], np.array([1.0, 0.0]))
    name = "decoder.embedding.weight"
    torch.testing.assert_close(other[name], -right[name])
    assert right[name].abs().max() > 1e-3


# --- drawing and the batch of it ---


def fake_run(samples: int = 4, xe_weight: float = 0.0, model=None) -> SimpleNamespace:
    settings = load_settings(["--scst-samples", str(samples), "--scst-xe-weight", str(xe_weight), "--device", "cpu"])
    return SimpleNamespace(
        settings=settings, model=model or tiny(), device=torch.device("cpu"), rewards=SimpleNamespace(ending=""),
    )  # fmt: skip


def own_captions(images: torch.Tensor, length: int = 4) -> Batch:
    """Two captions for each image."""
    tokens = torch.tensor(padded([[START, 4 + n, 5, END][: 2 + n % 3] for n in range(2 * len(images))], PAD))
    index = torch.arange(len(images)).repeat_interleave(2)
    inputs = tokens[:, :-1]
    return Batch(images, inputs, tokens[:, 1:], index, find_places(inputs, PAD, index, len(images)))


def drawn_by(monkeypatch, run, batch, rewards_of):
    """What scst.draw makes of the batch where captions earn `rewards_of` their ids; and the captions."""
    seen = []

    def earned(run, captions, images):
        seen.extend(captions)
        worth = np.array([rewards_of(caption.ids) for own in captions for caption in own], dtype=np.float64)
        return Earned(worth, *[np.zeros(len(worth))] * 3)

    monkeypatch.setattr(scst, "_earned", earned)
    groups = [[(n, (0, 1)) for n in range(len(batch.images))]]
    (made,), drawn = scst.draw(run, [batch], groups, epoch=0)
    return made, drawn, seen


def test_the_packed_pass_gives_the_probabilities_that_captions_were_drawn_with(monkeypatch):
    """<pad> as a drawn token included, and captions that were cut. Control: one token less."""
    run, batch = fake_run(samples=30), own_captions(pictures(3))
    made, drawn, captions = drawn_by(monkeypatch, run, batch, len)
    each = [caption for own in captions for caption in own]
    assert any(PAD in caption.ids[:-1] for caption in each) and any(len(caption.ids) == 8 for caption in each)
    assert any(len(caption.ids) < 8 for caption in each)
    run.model.eval()
    objective = scst.scst_objective(0.0, 0.1)
    ones = torch.ones_like(made.advantages, dtype=torch.float64)
    loss = objective.total(run.model, made._replace(advantages=ones))
    assert loss.item() == pytest.approx(-sum(caption.log_prob for caption in each), rel=1e-5)
    lost = objective.total(run.model, made._replace(advantages=ones.index_fill(0, torch.tensor([3]), 0.0)))
    assert lost.item() != pytest.approx(loss.item(), rel=1e-5)
    row = drawn.row()
    assert row["entropy"] == pytest.approx(loss.item() / objective.number(made), rel=1e-5)
    assert row["reward"] == pytest.approx(np.mean([len(caption.ids) for caption in each]))


def test_what_is_drawn_depends_on_seed_epoch_and_group_alone(monkeypatch):
    run, batch = fake_run(), own_captions(pictures(3))
    whole = drawn_by(monkeypatch, run, batch, len)[2]
    fewer = drawn_by(monkeypatch, run, own_captions(pictures(3)[:2]), len)[2]
    assert [c.ids for own in fewer for c in own] == [c.ids for own in whole[:2] for c in own]
    run.settings = run.settings.replace(SEED=2)
    other = drawn_by(monkeypatch, run, batch, len)[2]
    assert [c.ids for own in other for c in own] != [c.ids for own in whole for c in own]


def test_an_own_caption_of_each_picture_follows_the_drawn_ones_with_its_weight_and_smoothing(monkeypatch):
    run, batch = fake_run(xe_weight=0.3), own_captions(pictures(2))
    made, *_ = drawn_by(monkeypatch, run, batch, len)
    run.settings = run.settings.replace(SCST_XE_WEIGHT=0.0)
    alone, *_ = drawn_by(monkeypatch, run, batch, len)
    run.model.eval()
    both = scst.scst_objective(0.3, 0.1).total(run.model, made)
    policy = scst.scst_objective(0.3, 0.1).total(run.model, alone)
    logits = run.model(batch.images, batch.decoder_input_tokens, batch.image_index).flatten(0, 1)
    first = [batch.image_index.tolist().index(image) for image in range(2)]
    assert len(first) < len(batch.image_index)  # control: there are others, which are left out
    mask = torch.zeros(len(batch.image_index), 1, dtype=torch.bool)
    mask[first] = True
    real = ((batch.decoder_input_tokens != PAD) & mask).flatten()
    own = F.cross_entropy(logits[real], batch.target_tokens.flatten()[real], reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(both, policy + 0.3 * own)
    assert scst.scst_objective(0.3, 0.1).number(made) == len(alone.advantages) == len(made.advantages)
    assert abs((0.3 * own).item()) > 0.1


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_weighted_rows_of_the_loss_in_parts(rows, monkeypatch):
    monkeypatch.setattr("nanocaption.train.losses._PART", 1)  # 64 rows at a time
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(size, 6, generator=generator, dtype=torch.float64) for size in (rows, 11))
    targets, weights = torch.randint(11, (rows,), generator=generator), torch.randn(rows, generator=generator).double()
    model = SimpleNamespace(decoder=SimpleNamespace(embedding=SimpleNamespace(weight=weight.requires_grad_()),
                                                    logits=lambda hidden: hidden @ weight.T))  # fmt: skip
    found = []
    for smoothing in (0.0, 0.1):
        own = hidden.clone().requires_grad_()
        loss = token_loss(model, own, targets, smoothing, weights)
        assert "LossInParts" in type(loss.grad_fn).__name__
        plain = (weights * F.cross_entropy(own @ weight.T, targets, reduction="none", label_smoothing=smoothing)).sum()
        torch.testing.assert_close(loss, plain)
        for ours, theirs in zip(*(torch.autograd.grad(x, (own, weight)) for x in (3 * loss, 3 * plain)), strict=True):
            torch.testing.assert_close(ours, theirs)
        found.append(loss.item())
    assert found[0] != found[1]
    ones = LossInParts.apply(own, weight, targets, 0.1, torch.ones(rows, dtype=torch.float64))
    torch.testing.assert_close(ones, LossInParts.apply(own, weight, targets, 0.1))


# --- advantages, and what a training makes of them ---


def test_equal_rewards_have_no_advantage_to_the_bit_and_others_sum_to_nothing():
    rng = np.random.default_rng(0)
    equal = np.repeat(rng.random((50, 1)) * 3, 5, 1)
    assert (scst.advantages(equal) == 0).all()
    mixed = rng.random((50, 5))
    found = scst.advantages(mixed)
    others = [[np.delete(row, k).mean() for k in range(5)] for row in mixed]
    np.testing.assert_allclose(found, mixed - np.array(others), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)


def mean_reward_after(monkeypatch, shuffled: bool, steps: int) -> tuple[float, float]:
    """(before, after) of a tiny model trained to say token 5; shuffled: each caption is given another one's reward."""
    run = fake_run(samples=16, model=tiny(scale=None, dropout=0.0).float())
    batch, rng = own_captions(pictures(4).float()), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=5e-3, weight_decay=0.0)
    objective, means = scst.scst_objective(0.0, 0.0), []
    for step in range(steps):
        run.settings = run.settings.replace(SEED=step)
        made, drawn, _ = drawn_by(monkeypatch, run, batch, lambda ids: ids.count(5) / 8)
        means.append(drawn.row()["reward"])
        if shuffled:
            others = rng.choice(np.unique(made.advantages.numpy()), len(made.advantages))
            made = made._replace(advantages=torch.from_numpy(others.astype(np.float32)))
        optimizer.zero_grad()
        (objective.total(run.model, made) / objective.number(made)).backward()
        optimizer.step()
    return float(np.mean(means[:3])), float(np.mean(means[-3:]))


def test_right_rewards_raise_the_reward_and_shuffled_ones_do_not(monkeypatch):
    before, after = mean_reward_after(monkeypatch, shuffled=False, steps=25)
    assert after > 2 * before + 0.05, (before, after)
    before, after = mean_reward_after(monkeypatch, shuffled=True, steps=25)
    assert after < 1.5 * before + 0.02, (before, after)


# --- the reward ---

RECORDS = [
    {"captions": ["A dog runs on a beach .", "A dog runs on a field.", "A dog runs."]},
    {"captions": ["Two men sit at a table.", "Men drink tea."]},
    {"captions": ["A child eats an apple.", "The child is eating."]},
]


def worth(texts, image=0, ended=None, rewards=None) -> list[float]:
    rewards = rewards or make_rewards(RECORDS, "cider")[0]
    return earn(rewards, [image] * len(texts), texts, [0] * len(texts), ended or [True] * len(texts)).rewards.tolist()


def test_a_fragment_earns_less_than_the_sentence():
    sentence, fragment = "A dog runs.", "A dog runs on a."
    whole, part = worth([sentence, fragment])
    assert part < whole
    plain = prepare_references({n: r["captions"] for n, r in enumerate(RECORDS)})
    whole, part = cider_rewards(plain, [0, 0], [sentence, fragment])
    assert part > whole  # without the end as a word it would pay


def test_the_end_is_earned_by_end_and_full_stop_and_by_nothing_else():
    text = "A dog runs on a field."
    rewards, notes = make_rewards(RECORDS, "cider")
    assert rewards.ending == "." and "against 7 captions of 3 pictures" in notes[-1]
    full, cut = worth([text, text], ended=[True, False])
    (unsigned,) = worth([text[:-1]])
    assert full > cut == unsigned
    stray = earn(rewards, [0, 0], [text, text], [0, 1], [True, True]).rewards
    assert stray[1] < stray[0]  # a token that is no text counts as a word that nobody said
    other = [{**record, "captions": [text.rstrip(". ") for text in record["captions"]]} for record in RECORDS]
    bare, _ = make_rewards(other, "cider")
    assert bare.ending == "" and worth([text], rewards=bare) == worth([text[:-1]], rewards=bare)


def test_a_neighbour_never_changes_a_reward():
    texts = ["A dog runs to plan b.", "Two men sit.", "The dog runs.", "Modern art.", "22 dogs <a", "b> run.",
             "\rA dog."]  # fmt: skip
    alone = [worth([text])[0] for text in texts]
    assert worth(texts) == alone
    for order in itertools.islice(itertools.permutations(range(len(texts))), 0, 5040, 700):
        assert worth([texts[n] for n in order]) == [alone[n] for n in order]
    assert ptb_tokenize(["plan b.", "Two men"])[0] != ptb_tokenize(["plan b.", "The men"])[0]  # the trap is there


def test_bleu_is_added_where_it_is_asked_for():
    both, _ = make_rewards(RECORDS, "cider+bleu")
    texts = ["A dog runs on a field.", "A cat."]
    more = np.array(worth(texts, rewards=both)) - np.array(worth(texts))
    assert more[0] == pytest.approx(1) and 0 < more[1] < 0.5
    plain = prepare_references({"i": ["a b c d e", "a b"]}, list)
    found = bleu_rewards(plain, ["i", "i"], ["a b x d", "a b"])
    # 3/4 words; 1 + 1 of 3 + 1 pairs, 0 + 1 of 2 + 1, 0 + 1 of 1 + 1; as long as the closest reference but one
    assert found[0] == pytest.approx((3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25 * np.exp(1 - 5 / 4), rel=1e-6)
    assert found[1] == pytest.approx((1 * 1 * 1 * 1) ** 0.25, rel=1e-6)


def test_bad_endings_words_and_missing_stops_are_counted():
    rewards, _ = make_rewards(RECORDS, "cider")
    found = earn(rewards, [0] * 4, ["A dog on a", "A dog on a.", "", "A dog."], [0] * 4, [True, False, True, True])
    assert found.bad_endings.tolist() == [True, False, False, False]
    assert found.unsigned.tolist() == [True, False, True, False]
    assert found.lengths.tolist() == [4, 4, 0, 2]


def test_sets_that_give_little_to_be_rewarded_are_told_or_refused():
    with pytest.raises(ValueError, match="1 captioned training picture.*document frequencies"):
        make_rewards(RECORDS[:1], "cider")
    _, notes = make_rewards([{**record, "captions": record["captions"][:1]} for record in RECORDS], "cider")
    assert any("have one caption" in note for note in notes)
    none = make_rewards([*RECORDS, {"captions": []}], "cider")[1]
    assert "7 captions of 3 pictures" in none[-1] and not any("one caption" in note for note in none)
    chinese = [{"captions": ["一只狗在草地上奔跑。", "一只狗在跑。"]}, {"captions": ["两个男人坐在桌旁。"]}]
    rewards, notes = make_rewards(chinese, "cider")
    assert any("characters count as words" in note for note in notes) and rewards.ending == "。"
    near, far = worth(["一只狗在沙滩上奔跑。", "两个人。"], rewards=rewards)
    assert near > far


# --- the start, the phase, what is told ---


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--scst-samples 1", "SCST_SAMPLES = 1: needs at least 2"),
        ("--objective scst --scst-start-epoch 12", "SCST_START_EPOCH = 12: must be below NUM_EPOCHS = 12"),
        ("--objective scst --scst-start-epoch 2 --validation-score-images 0", "the best CIDEr"),
        ("--objective scst --scst-start-epoch 2 --scst-lr-schedule cosine --min-lr 1e-3", "SCST_LEARNING_RATE = 0.000"),
        ("--patch-drop 1", "PATCH_DROP = 1.0: must be at least 0 and below 1"),
        ("--scst-xe-weight -1", "SCST_XE_WEIGHT = -1.0"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_line(flags, told):
    with pytest.raises(SystemExit, match=told):
        load_settings(flags.split())
    load_settings(["--objective", "scst", "--scst-start-epoch", "11", "--patch-drop", "0.9", "--scst-samples", "2"])


def test_it_begins_with_a_trained_captioner(tmp_path):
    argv = ["--objective", "scst", "--output-dir", str(tmp_path)]
    for more in ([], ["--resume-checkpoint-path", "last"]):
        with pytest.raises(SystemExit, match="give --init-checkpoint-path .* or SCST_START_EPOCH"):
            setup.find_start(load_settings([*argv, *more]))


def test_the_phase_has_its_own_schedule_and_patience():
    flags = "--objective scst --scst-start-epoch 2 --num-epochs 6 --scst-lr-schedule cosine --warmup-steps 10"
    settings = load_settings(flags.split())
    images = SimpleNamespace(token_ids=[[[1, 2]] * 5] * 800, weights=[1.0] * 800, rounded_up=False)
    plan = setup.make_plan(settings, images, None)
    steps = plan.schedule.steps_per_epoch
    assert plan.scst_from == 2 * steps and plan.rate(2 * steps - 1) == pytest.approx(1e-5, rel=0.05)
    assert [plan.rate(2 * steps + n) for n in (0, 10, 20)] == pytest.approx([0, 5e-5, 1e-4])
    assert plan.rate(6 * steps) == pytest.approx(1e-5)
    xe = setup.make_plan(load_settings(["--num-epochs", "6"]), images, None)
    assert xe.scst is None and xe.schedule.total_steps == 6 * steps
    progress = setup.Progress(best_val_loss=1.0, best_cider=0.5, validations_without_gain=1)
    worse, names = progress.after_validation(0.5, 0.4, by_cider=True)
    assert not names and worse.validations_without_gain == 2 and worse.best_val_loss == 1.0
    better, names = progress.after_validation(2.0, 0.6, by_cider=True)
    assert names == ["best_cider.safetensors"] and better.validations_without_gain == 0


def history(steps: int, **now: float) -> list[dict[str, object]]:
    start = {"reward": 0.3, "reward_spread": 0.2, "entropy": 3.0, "length": 10.0, "ended": 1.0, "bad_endings": 0.01,
             "no_full_stop": 0.01}  # fmt: skip
    rows = [{"type": "train", "step": n, **start} for n in range(steps // 2)]
    return [*rows, *({"type": "train", "step": n, **start, **now} for n in range(steps // 2, steps))]


def test_what_goes_astray_is_one_line():
    assert scst.drift(history(200, reward=0.5, entropy=1.5)) is None
    for name, value in (("reward", 0.2), ("reward_spread", 0.01), ("entropy", 0.5), ("length", 5.0), ("ended", 0.9),
                        ("bad_endings", 0.05), ("no_full_stop", 0.1)):  # fmt: skip
        told = scst.drift(history(200, **{name: value}))
        assert told and told.count("->") == 1 and f"{name} " in told
    rising = [{"type": "train", "reward": 0.5, "ended": min(1.0, step / 400)} for step in range(200)]
    assert scst.drift(rising) is None  # more captions end than did, though not half of them yet
    assert scst.drift(history(10, reward=0.1)) is None  # so few steps say nothing
    assert scst.drift([{"type": "train", "step": 1, "loss": 2.0}] * 100) is None


# --- PATCH_DROP ---


def test_a_part_of_the_patches_is_that_of_the_features_and_other_tokens_stay():
    model, batch = tiny(), own_captions(torch.randn(2, 17, 12, dtype=torch.float64))  # 1 token before 16 patches
    kept = torch.tensor([[0, 3, 9], [2, 3, 15]])
    by_hand = torch.stack([batch.images[n, [0, *(kept[n] + 1)]] for n in (0, 1)])
    assert torch.equal(model.memory(batch.images, kept), model.memory(by_hand))
    assert not torch.equal(model.memory(batch.images, kept.flip(0)), model.memory(by_hand))
    pixels = pictures(2)
    model.freeze_encoder = True  # rows of its output; see test_encoder.py for one that trains
    assert torch.equal(model.memory(pixels, kept)[0], model.memory(pixels)[0, kept[0]])


def test_what_is_left_out_is_a_function_of_seed_step_and_picture():
    settings, groups = load_settings(["--patch-drop", "0.3"]), [(n, (0, 1)) for n in range(3)]
    batch = own_captions(pictures(3))
    found = drop_patches(batch, groups, settings, 0, 7, 16).kept
    assert found.shape == (3, 11) and (found.diff() > 0).all() and found.max() < 16
    assert torch.equal(drop_patches(batch, groups[1:], settings, 0, 7, 16).kept, found[1:])
    assert not torch.equal(drop_patches(batch, groups, settings, 0, 8, 16).kept, found)
    assert not torch.equal(drop_patches(batch, groups, settings.replace(SEED=2), 0, 7, 16).kept, found)
    assert drop_patches(batch, groups, load_settings([]), 0, 7, 16) is batch
    whole_at_end = settings.replace(NUM_EPOCHS=3, PATCH_DROP_WHOLE_EPOCHS=1)
    assert [drop_patches(batch, groups, whole_at_end, n, 7, 16).kept is None for n in range(3)] == [False, False, True]
    assert drop_patches(batch, groups, load_settings(["--patch-drop", "0.99"]), 0, 7, 16).kept.shape == (3, 1)
