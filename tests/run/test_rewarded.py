"""Self-critical training from a checkpoint: what it changes, which checkpoint counts, what scores and exports say."""

import json

import pytest
import torch

import evaluate
import train
from nanocaption.export.card import Facts, write_card
from nanocaption.runs import checkpoint
from nanocaption.runs.folder import BEST_CIDER, LAST, best_of, best_of_newest
from nanocaption.train import scst, setup
from nanocaption.train.rewards import Earned
from nanocaption.use import soup
from nanocaption.use.load import trained_by_reward
from tests.processes import rows


def rewarded(flags, tiny_run, name: str, *more: str):
    """The folder of a run of one epoch of rewards that begins with the tiny run's weights."""
    train.main([*flags, "--objective", "scst", "--init-checkpoint-path", str(tiny_run / LAST), "--num-epochs", "1",
                "--run-name", name, "--scst-learning-rate", "1e-3", *more])  # fmt: skip
    return tiny_run.parent / name


def weights(path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path)["model_state_dict"]


def test_a_run_from_a_checkpoint_learns_and_its_best_and_its_scores_say_how(flags, tiny_run, capsys):
    run = rewarded(flags, tiny_run, "scst", "--scst-xe-weight", "0.2", "--scst-reward", "cider+bleu")
    printed = capsys.readouterr().out
    assert "reward: CIDEr-D plus BLEU-4 against 120 captions of 24 pictures" in printed
    assert "self-critical from step 0 on: 5 captions drawn per picture" in printed
    logged = rows(run, "train")
    assert len(logged) == 6 and all(0 < row["reward"] < 10 and row["entropy"] > 0 for row in logged)
    before, after = weights(tiny_run / LAST), weights(run / LAST)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    # The loss names no checkpoint: the best CIDEr does, for the run and for whoever asks for the newest run's.
    assert not list(run.glob("checkpoint_epoch_*")) and best_of(run) == run / BEST_CIDER
    assert best_of_newest(run.parent) == run / BEST_CIDER and best_of(tiny_run) != tiny_run / BEST_CIDER
    for path, said in ((run / BEST_CIDER, True), (tiny_run / LAST, False)):
        assert trained_by_reward(checkpoint.load(path)) is said
        output = run / f"scores-{said}"
        evaluate.main([*flags, "--checkpoint", str(path), "--split", "val", "--output", str(output)])
        signature = json.loads((output / "scores.json").read_text())["signature"]
        assert (" scst:eos" in signature) is said
    state = checkpoint.load(run / LAST)
    assert state["rewarded_steps"] == 6
    from nanocaption.model.exported import describe

    assert describe(state)["trained"]["rewarded_steps"] == 6
    assert "rewarded_steps" not in describe(checkpoint.load(tiny_run / LAST))["trained"]
    members = [soup.read_member(path) for path in (tiny_run / LAST, run / LAST)]
    assert trained_by_reward(soup.mean(members, [3, 1]))  # and so does the mean with such a model
    texts = [write_card(member.state, None, 16, Facts("x", None, None, None, [], "")) for member in members]
    assert "reward cider+bleu" in texts[1], texts[1]
    assert "| schedule | constant |" in texts[1] and "| begun with | the weights of last" in texts[1]
    assert "| objective | cross-entropy |" in texts[0] and "| begun with | random weights" in texts[0]


def test_equal_rewards_change_nothing(flags, tiny_run, monkeypatch):
    """Neither weights, by weight decay, nor the optimizer's moments; the test above is the control."""
    real = scst.earn

    def equal(*arguments) -> Earned:
        found = real(*arguments)
        return found._replace(rewards=0 * found.rewards + 0.1)

    monkeypatch.setattr(scst, "earn", equal)
    run = rewarded(flags, tiny_run, "equal", "--weight-decay", "0.5")
    before, after = weights(tiny_run / LAST), weights(run / LAST)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not checkpoint.load(run / LAST)["optimizer_state_dict"]["state"]
    assert [row["grad_norm"] for row in rows(run, "train")] == [0.0] * 6
    assert [row["reward_spread"] for row in rows(run, "train")] == [0.0] * 6


def test_an_untrained_checkpoint_is_no_start(flags, tiny_run, monkeypatch):
    monkeypatch.setattr(setup, "load_initial", lambda settings: {"step": 0})
    with pytest.raises(SystemExit, match="has not been trained yet"):
        rewarded(flags, tiny_run, "refused")
    assert not (tiny_run.parent / "refused").exists()


def test_another_objective_is_another_run_also_for_checkpoints_that_do_not_say(flags, tiny_run):
    state = checkpoint.load(tiny_run / LAST)
    for name in [name for name in state["config"] if name.startswith("SCST") or name in ("OBJECTIVE", "PATCH_DROP")]:
        del state["config"][name], state["config_constants"][name]
    checkpoint.save(tiny_run / LAST, state)
    more = ["--resume-checkpoint-path", str(tiny_run / LAST), "--num-epochs", "3"]
    for own in (["--objective", "scst", "--scst-start-epoch", "2"], ["--patch-drop", "0.5"]):
        with pytest.raises(SystemExit, match="continues the same run"):
            train.main([*flags, *more, *own])
    train.main([*flags, *more, "--decoder-dropout", "0.2", "--keep-best", "3"])
    assert len(rows(tiny_run, "train")) == 18
