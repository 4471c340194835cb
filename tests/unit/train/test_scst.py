"""Self-critical training: the gradient is that of the expected reward, the reward cannot be had by fragments."""

import itertools

import numpy as np
import torch

from nanocaption.data.dataset import Batch
from nanocaption.data.tokenizer import END, START
from nanocaption.model.decode import Caption
from nanocaption.train import scst
from nanocaption.train.rewards import Earned
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
    objective.total(model, made._replace(rewards=made.rewards.double())).backward()
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
