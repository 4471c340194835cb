"""Answers: cached = recomputed, batched = single, one picture's questions together = apart, and what a model learns.

In float64, with weights large enough that every path matters; each equality stands beside a case that must differ.
"""

import itertools

import numpy as np
import pytest
import torch

from nanocaption.data.dataset import collate_fn
from nanocaption.data.question_tokens import answer_starts, encode_questions, question_ids
from nanocaption.data.questions import Asking
from nanocaption.data.tokenizer import END, PAD, SEP, START, train_tokenizer
from nanocaption.model import decode
from nanocaption.model.answers import answer_log_probs, answer_questions, refuse_long
from nanocaption.model.decoder import Prefix
from nanocaption.model.options import Options
from nanocaption.train.losses import caption_objective
from tests.unit.model.test_model import V, close, pictures, rng, tiny

LONGEST = 20
QUESTIONS = ([START, 5, 6, 7], [START, 8], [START, 9, 10, 11, 12, 13], [START, 14, 15])
ABOUT = (1, 0, 1, 2)  # the picture of each: two of one picture, out of order


def model(**changes):
    return tiny(MAX_SEQ_LEN=LONGEST, **changes)


def prefix(rows=QUESTIONS, about=ABOUT) -> Prefix:
    tokens = torch.full((len(rows), max(map(len, rows))), PAD)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return Prefix(tokens, torch.tensor(about))


def full(captioner, images, row: list[int], about: int) -> torch.Tensor:
    """The logits behind the last token, from the whole sequence at once."""
    return captioner(images[about : about + 1], torch.tensor([row]))[0, -1]


# --- steps ---


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_step_behind_a_question_gives_the_logits_of_the_full_pass(beams):
    captioner, images = model(), pictures(3)
    step, rows = captioner.start_decoding(images, prefix()), len(QUESTIONS) * beams
    sequences = torch.full((rows, 1), SEP)
    parents = None
    for length in range(1, 9):
        logits = step(sequences[:, -1], parents)
        expected = [full(captioner, images, [*QUESTIONS[row // beams], *sequences[row].tolist()], ABOUT[row // beams])
                    for row in range(rows)]  # fmt: skip
        assert close(logits, torch.stack(expected)), f"token {length}"
        other = full(captioner, images, [*QUESTIONS[1], *sequences[0].tolist()], ABOUT[0])
        assert not close(logits[0], other), "another question must give others"
        parents = torch.randint(beams, (len(QUESTIONS), beams), generator=rng(length))
        parents = (parents + torch.arange(len(QUESTIONS))[:, None] * beams).flatten()
        following = torch.randint(4, V, (rows, 1), generator=rng(90 + length))
        sequences = torch.cat([sequences[parents], following], 1)


@torch.no_grad()
@pytest.mark.parametrize("left", [[1, 2], [0, 3], [2]])
def test_questions_left_out_of_the_steps_change_nothing_for_the_others(left):
    captioner, images, beams = model(), pictures(3), 2
    every, fewer = (captioner.start_decoding(images, prefix()) for _ in range(2))
    tokens = torch.randint(4, V, (5, 4 * beams), generator=rng(1))
    parents = torch.tensor([1, 0, 2, 2, 5, 4, 6, 7])
    rows = torch.tensor([question * beams + beam for question in left for beam in range(beams)])
    for position in range(3):
        step_parents = parents if position else None
        assert close(every(tokens[position], step_parents), fewer(tokens[position], step_parents))
    expected = every(tokens[3], parents)
    assert close(fewer(tokens[3][rows], parents[rows]), expected[rows])
    assert not close(expected[:beams], expected[beams : 2 * beams])
    assert close(fewer(tokens[4][rows]), every(tokens[4])[rows])


@torch.no_grad()
def test_the_keys_of_a_picture_are_made_once_for_all_its_questions():
    captioner, images = model(), pictures(2)
    made = []
    for layer in captioner.decoder.layers:
        layer.cross_kv.register_forward_hook(lambda _module, inputs, _output: made.append(inputs[0].shape[:2]))
    step = captioner.start_decoding(images, prefix(QUESTIONS * 3, (0, 1) * 6))
    step(torch.full((12,), SEP), None)
    assert made == [(2, 16)] * 2, "one pass a layer, over two pictures for twelve questions"


# --- whole answers ---


@torch.no_grad()
@pytest.mark.parametrize("options", [
    Options(), Options(beam_size=3, length_penalty=0.7), Options(samples=3), Options(beam_size=4, beam_groups=2),
    Options(beam_size=2, min_length=3, no_repeat_ngram=2),
], ids=["greedy", "beams", "drawn", "groups", "rules"])  # fmt: skip
def test_an_answer_is_the_same_alone_and_in_a_batch_of_others(options):
    captioner, images = model(), pictures(3)

    def answers(rows, about, seeds):
        limits = decode.Limits(SEP, END, LONGEST)
        step = captioner.start_decoding(images, prefix(rows, about))
        return decode.decode(step, len(rows), options, limits, seeds)

    together = answers(QUESTIONS, ABOUT, range(4))
    for place, (row, about) in enumerate(zip(QUESTIONS, ABOUT, strict=True)):
        (alone,) = answers([row], [about], [place])
        assert [one.ids for one in alone] == [one.ids for one in together[place]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in together[place]], abs=1e-6)
    assert len({str(found) for found in together}) == 4, "the questions have answers of their own"


@torch.no_grad()
def test_a_row_without_room_ends_there_whatever_is_beside_it():
    captioner, images = model(), pictures(1)
    captioner.decoder.embedding.weight[END] = 0  # it never wants to end
    long = [START, *[5] * (LONGEST - 5)]
    step = captioner.start_decoding(images, prefix([long, QUESTIONS[1]], [0, 0]))
    found = decode.decode(step, 2, Options(min_length=1), decode.Limits(SEP, END, LONGEST))
    assert [len(row[0].ids) for row in found] == [LONGEST - 1 - len(long), LONGEST - 1 - len(QUESTIONS[1])]
    alone = captioner.start_decoding(images, prefix([long], [0]))
    assert decode.decode(alone, 1, Options(min_length=1), decode.Limits(SEP, END, LONGEST))[0][0].ids == found[0][0].ids


# --- texts ---


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["what colour is the car?", "how many cats are there?", "red", "two", "is it red? no it is blue"] * 3
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokens"), 300)


def test_rows_are_start_question_sep_answer_end(tokenizer):
    asked = Asking("how many cats are there?", "two", (("what colour is the car?", "red"),))
    (row,) = encode_questions(tokenizer, [asked], 200).rows
    parts = [list(group) for marks, group in itertools.groupby(row.tolist(), lambda token: token in (START, SEP, END))
             if not marks]  # fmt: skip
    assert [tokenizer.decode(part).strip() for part in parts] == [*asked.turns[0], asked.question, asked.answer]
    assert [token for token in row.tolist() if token in (START, SEP, END)] == [START, SEP, START, SEP, END]
    assert tokenizer.decode(row[answer_starts(row) : -1].tolist()).strip() == "two"
    assert question_ids(tokenizer, [asked], 200) == [row[: answer_starts(row) - 1].tolist()]
    assert answer_starts(np.array([START, 5, 6, END])) == 0, "a caption is learnt from its start"


def test_what_does_not_fit_is_shortened_cut_or_left_out_and_counted(tokenizer):
    turns = (("what colour is the car?", "red"), ("is it red?", "no"))
    asked = Asking("is it blue?", "two", turns)
    whole = len(encode_questions(tokenizer, [asked], 200).rows[0])
    assert [encode_questions(tokenizer, [asked], longest).shortened for longest in (whole, whole - 2)] == [0, 1]
    bare = Asking("is it blue?", "it is red " * 5)
    needed = len(question_ids(tokenizer, [bare], 200)[0]) + 1
    found = encode_questions(tokenizer, [bare, Asking("is it?", "no")], needed + 3)
    assert found.cut == [len(encode_questions(tokenizer, [bare], 200).rows[0])]
    assert len(found.rows[0]) == needed + 3 and found.rows[0][-1] != END == found.rows[1][-1]
    assert encode_questions(tokenizer, [bare], needed + 2).rows[0] is not None
    tight = encode_questions(tokenizer, [bare], needed + 1)
    assert tight.rows == [None] and tight.too_long == [(0, needed)]
    with pytest.raises(ValueError, match=f"has {needed - 1} tokens, and the model reads at most {needed - 2}") as error:
        refuse_long(tokenizer, bare, needed + 1)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_question_that_is_too_long_has_no_answer_and_the_others_theirs(tokenizer):
    captioner = tiny(vocab_size=tokenizer.get_vocab_size(), MAX_SEQ_LEN=24)
    images, short, long = pictures(2), Asking("is it?", ""), Asking("is it red? " * 20, "")
    found = answer_questions([captioner], tokenizer, [images], [(0, short), (1, long), (1, short)], Options())
    assert [len(row) for row in found] == [1, 0, 1]
    (alone,) = answer_questions([captioner], tokenizer, [images], [(1, short)], Options())
    assert alone[0].ids == found[2][0].ids
    two = answer_questions([captioner, captioner], tokenizer, [images] * 2, [(1, short)], Options(beam_size=2))
    one = answer_questions([captioner], tokenizer, [images], [(1, short)], Options(beam_size=2))
    assert two[0][0].ids == one[0][0].ids, "the mean of two equal models is that model"
    with pytest.raises(ValueError, match="min_length = 23"):
        answer_questions([captioner], tokenizer, [images], [(0, short)], Options(min_length=23))


@torch.no_grad()
def test_log_probabilities_of_given_answers_are_those_of_the_decoding(tokenizer):
    captioner = tiny(vocab_size=tokenizer.get_vocab_size(), MAX_SEQ_LEN=24)
    images = pictures(2)
    given = [(0, Asking("is it?", "red")), (1, Asking("is it red?", "no it is blue")), (0, Asking("is it red?", ""))]
    values = answer_log_probs(captioner, tokenizer, images, given)
    for (about, one), value in zip(given, values, strict=True):
        row = encode_questions(tokenizer, [one], 24).rows[0].tolist()
        head = row[: answer_starts(np.array(row)) - 1]
        step, total = captioner.start_decoding(images, prefix([head], [about])), 0.0
        for token, following in itertools.pairwise(row[len(head) :]):
            total += step(torch.tensor([token]), None).log_softmax(-1)[0, following].item()
        assert value == pytest.approx(total, abs=1e-5), one
    turned = answer_log_probs(captioner, tokenizer, images.flip(0), given)
    assert values != pytest.approx(turned, abs=1e-3), "of another picture they are others"
    long = answer_log_probs(captioner, tokenizer, images, [(0, Asking("is it?", "red " * 40)), given[0]])
    assert long[0] == -float("inf") and long[1] == pytest.approx(values[0])


# --- what is learnt ---


def batch_of(rows, pixels):
    groups = [[np.array(row, dtype=np.int32) for row in of_image] for of_image in rows]
    return collate_fn([(image, own) for image, own in zip(pixels, groups, strict=True)])


ROWS = [[[START, 5, 6, SEP, 7, END], [START, 8, SEP, 9, 10, END]], [[START, 11, 12, 13, SEP, 14]]]


def test_the_loss_is_over_the_tokens_of_the_answers_alone():
    captioner, images = model(), pictures(2)
    batch, objective = batch_of(ROWS, images), caption_objective()
    assert objective.number(batch) == 2 + 3 + 1, "the last answer was cut: it has no end to learn"
    loss = objective.total(captioner, batch)
    logits = captioner(batch.images, batch.decoder_input_tokens, batch.image_index).log_softmax(-1)
    by_hand = [(0, 3, 7), (0, 4, END), (1, 2, 9), (1, 3, 10), (1, 4, END), (2, 4, 14)]
    assert close(loss, -sum(logits[row, place, token] for row, place, token in by_hand))
    assert not close(loss, -sum(logits[row, place, token] for row, place, token in by_hand[:-1]))


def test_labels_of_questions_change_nothing_and_get_no_gradient():
    captioner, images = model(), pictures(2)
    batch, objective = batch_of(ROWS, images), caption_objective(0.1)
    loss = objective.total(captioner, batch)
    targets = batch.target_tokens.clone()
    targets[0, :3], targets[1, :2], targets[2, :4] = 20, 21, 22
    assert torch.equal(objective.total(captioner, batch._replace(target_tokens=targets)), loss)
    targets[0, 3] = 20
    assert not close(objective.total(captioner, batch._replace(target_tokens=targets)), loss), "an answer's label does"
    hidden = captioner.hidden(batch.images, batch.decoder_input_tokens, batch.places).detach().requires_grad_()
    captioner.hidden = lambda *_: hidden
    objective.total(captioner, batch).backward()
    answers = batch.answers.tolist()
    assert all((row.norm() > 0) == (place in answers) for place, row in enumerate(hidden.grad))


def test_captions_are_learnt_whole_and_beside_questions_as_well():
    captioner, images = model(), pictures(2)
    captions = [[[START, 5, 6, END]], [[START, 7, END], [START, 8, 9, END]]]
    assert batch_of(captions, images).answers is None
    mixed = batch_of([captions[0], ROWS[1]], images)
    assert caption_objective().number(mixed) == 3 + 1
    parts = [batch_of([captions[0]], images[:1]), batch_of([ROWS[1]], images[1:])]
    apart = sum(caption_objective().total(captioner, part) for part in parts)
    assert close(caption_objective().total(captioner, mixed), apart)


def test_an_overfitted_batch_is_answered_exactly():
    captioner, images = tiny(None, MAX_SEQ_LEN=LONGEST).float(), pictures(2).float()
    rows = [[[START, 5, SEP, 7, 8, END], [START, 5, 6, 9, SEP, 10, END]], [[START, 5, SEP, 11, 12, 13, END]]]
    batch, objective = batch_of(rows, images), caption_objective()
    optimizer = torch.optim.AdamW(captioner.train().parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective.total(captioner, batch).backward()
        optimizer.step()
    captioner.eval()
    step = captioner.start_decoding(images, prefix([[START, 5], [START, 5, 6, 9], [START, 5]], [0, 0, 1]))
    found = decode.decode(step, 3, Options(), decode.Limits(SEP, END, LONGEST))
    assert [row[0].ids for row in found] == [[7, 8], [10], [11, 12, 13]]
    step = captioner.start_decoding(images.flip(0), prefix([[START, 5]], [0]))
    assert decode.decode(step, 1, Options(), decode.Limits(SEP, END, LONGEST))[0][0].ids != [7, 8], "the picture counts"
