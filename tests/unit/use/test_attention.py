"""What words look at: equal to plain attention, whole words, any tower's grid, the JSON and the picture."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from nanocaption.data.tokenizer import encode, train_tokenizer
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.encoder import PretrainedTower
from nanocaption.use.attention import CaptionMaps, WordMap, _lit, attend, attend_maps, draw_words, word_maps, words_of
from tests.unit.model.test_model import START, T, captions, close, pictures, tiny


def plain_weights(model: ImageToTextModel, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(layers, B, T, H, P), one caption and one query at a time, by the formula."""
    decoder, memory = model.decoder, model.memory(images)
    result = torch.zeros(2, *tokens.shape, 2, memory.shape[1], dtype=memory.dtype)
    for b, row in enumerate(tokens):
        ids = row[row != decoder.pad]
        x = decoder.embedding(ids) + decoder.position_embedding.weight[: len(ids)]
        for number, layer in enumerate(decoder.layers):
            q, k, v = layer.self_qkv(layer.self_norm(x)).view(len(ids), 3, 2, 8).unbind(1)  # (T, H, D/H)
            mixed = torch.zeros_like(q)
            for t in range(len(ids)):
                for h in range(2):
                    mixed[t, h] = torch.softmax(k[: t + 1, h] @ q[t, h] / 8**0.5, 0) @ v[: t + 1, h]
            x = x + layer.self_out(mixed.flatten(1))
            q = layer.cross_q(layer.cross_norm(x)).view(-1, 2, 8)
            k, v = layer.cross_kv(memory[b]).view(-1, 2, 2, 8).unbind(1)
            for t in range(len(ids)):
                for h in range(2):
                    result[number, b, t, h] = torch.softmax(k[:, h] @ q[t, h] / 8**0.5, 0)
            x = x + layer.cross_out(torch.einsum("thp,phd->thd", result[number, b, : len(ids)], v).flatten(1))
            x = x + layer.feedforward(layer.feedforward_norm(x))
    return result


@torch.no_grad()
def test_one_pass_gives_the_weights_of_plain_attention():
    model, images, tokens = tiny(), pictures(3), captions(3)
    tokens[1, 4:] = 0
    weights, side = model.cross_attention(images, tokens)
    assert weights.shape == (2, 3, T, 2, 16) and side == 4
    assert close(weights, plain_weights(model, images, tokens))
    assert close(weights.sum(-1)[:, 0], torch.ones(2, T, 2, dtype=torch.float64))
    assert not weights[:, 1, 4:].any()
    assert not close(weights, plain_weights(model, images.roll(1, 0), tokens))


@torch.no_grad()
def test_captions_of_one_image_and_other_batches_change_no_weight():
    model, images, tokens = tiny(), pictures(2), captions(3)
    together, _ = model.cross_attention(images, tokens, torch.tensor([0, 1, 0]))
    alone, _ = model.cross_attention(images[:1], tokens[2:, :5])
    assert close(together[:, 2, :5], alone[:, 0])
    assert not close(together[:, 1, :5], alone[:, 0])


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    sentences = ["A dog runs on the beach.", "Two dogs run.", "A red ball."] * 3
    return train_tokenizer(sentences, tmp_path_factory.mktemp("tokenizer"), 400)


def word_tokens(tok, *words: str) -> list[int]:
    """Ids of words that are one token each."""
    ids = [tok.token_to_id("Ġ" + word) for word in words]
    assert None not in ids
    return ids


SIZES = {
    "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 48, "patch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind, extra", [("vit", 1), ("deit", 2), ("clip_vision_model", 1), ("siglip_vision_model", 0), ("dinov2", 1)]
)
def test_the_grid_leaves_a_towers_class_tokens_out(kind, extra, tok):
    spec = {"size": 48, "resize": 48, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    tower = {"encoder_config": {"model_type": kind, **SIZES}, "image_spec": spec}
    model = tiny(vocab_size=tok.get_vocab_size(), tower=tower, ENCODER_MODEL_NAME="any", IMAGE_SIZE=None)
    assert isinstance(model.encoder, PretrainedTower)
    images = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    ids = word_tokens(tok, "A", "dog")
    weights, side = model.cross_attention(images, torch.tensor([[START, *ids[:-1]]]))
    assert side == 6 and weights.shape[-1] == 36 + extra
    (maps,) = attend_maps(model, tok, images, [ids])
    expected = weights.mean((0, 3))[0, :, extra:].view(-1, 6, 6)  # (len(ids), 6, 6)
    assert [word.text for word in maps.words] == ["A", "dog"]
    torch.testing.assert_close(maps.words[0].weights, expected[0].float())
    total = maps.words[0].weights.sum().item()
    assert total < 1 - 1e-4 if extra else total == pytest.approx(1)


# --- words ---

@pytest.mark.parametrize(
    "text", ["A dog runs.", "extraordinarily", "naïve café — 東京 🐕", "two  spaces ", "", "<end> of it", "a\nb c"]
)
def test_words_are_those_between_spaces_and_use_every_token_once(tok, text):
    ids = encode(tok, text, 200)[1:-1]
    words = words_of(tok, ids)
    assert [word for word, _ in words] == [word for word in text.split(" ") if word]
    places = [place for _, group in words for place in group]
    assert len(places) == len(set(places)) and sorted(places) == places
    spaces = [place for place, token in enumerate(ids) if tok.id_to_token(token) == "Ġ"]
    assert set(range(len(ids))) - set(places) <= set(spaces)
    if text == "extraordinarily":
        assert len(places) > 3  # several tokens, one word


def test_a_words_map_is_the_mean_over_its_tokens_layers_and_heads(tok):
    ids = encode(tok, "A zebra", 20)[1:-1]
    assert len(ids) > 2
    weights = torch.rand(2, len(ids), 3, 1 + 4)
    maps = word_maps(tok, ids, weights, side=2)
    assert maps.side == 2 and [word.text for word in maps.words] == ["A", "zebra"]
    torch.testing.assert_close(maps.words[1].weights, weights[:, 1:, :, 1:].mean((0, 1, 2)).view(2, 2))
    assert not torch.allclose(maps.words[0].weights, maps.words[1].weights)


def test_attend_gives_one_json_ready_entry_per_caption(tok):
    model = tiny(vocab_size=tok.get_vocab_size(), MAX_SEQ_LEN=12)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    texts = ["A dog runs.", "", "Two dogs"]
    ids = [encode(tok, text, 12)[1:-1] for text in texts]
    found = json.loads(json.dumps(attend(model, tok, images, ids)))
    assert [[word["text"] for word in entry["words"]] for entry in found] == [text.split() for text in texts]
    for entry in found:
        assert (entry["rows"], entry["cols"]) == (4, 4)
        for word in entry["words"]:
            assert len(word["weights"]) == 16 and max(word["weights"]) == 255 and min(word["weights"]) >= 0
    for number in (0, 2):  # a batch changes nothing
        assert attend(model, tok, images[[number]], [ids[number]]) == [found[number]]
    assert attend(model, tok, images[[1]], [ids[0]]) != [found[0]]
    assert attend(model, tok, images[:0], []) == []
    with pytest.raises(ValueError, match="14 tokens: the decoder holds at most 12"):
        attend(model, tok, images[:1], [[5] * 14])


def test_a_word_is_seen_at_the_place_that_chose_it(tok):
    """A map depends on the words before, not on the word itself or on what follows."""
    model = tiny(vocab_size=tok.get_vocab_size())
    texts = [("A", "dog", "runs"), ("A", "dog", "on"), ("Two", "dog", "runs")]
    ids = [word_tokens(tok, *words) for words in texts]
    found = attend_maps(model, tok, pictures(1).expand(3, -1, -1, -1), ids)
    one, other, third = ([word.weights for word in maps.words] for maps in found)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one[0], third[0])
    assert not torch.allclose(one[1], third[1])


def test_the_drawing_lights_the_picture_where_a_word_looked():
    picture = Image.new("RGB", (80, 60), (0, 200, 0))
    weights = torch.zeros(4, 4)
    weights[0, 0] = 0.5
    lit = np.asarray(_lit(picture, weights)).astype(int)
    assert lit.shape == (60, 80, 3)
    assert lit[3, 3, 1] > 150 and lit[-3, -3, 1] < 60 and (lit[-3, -3] == lit[-3, -3, 0]).all()
    words = [WordMap("$dog", weights), WordMap("runs.", weights)]
    drawn = Image.open(io.BytesIO(draw_words(picture, "$dog runs.", CaptionMaps(4, words))))
    assert drawn.format == "PNG" and drawn.width > 800
    assert len(drawn.convert("RGB").getcolors(2**24)) > 20

