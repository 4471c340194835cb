"""A loaded model in the hands of a program: any input, names, dtypes, threads; and each block of docs/use.md."""

import io
import re
import shlex
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nanocaption
from nanocaption.base.shown import shown
from nanocaption.commands import export
from nanocaption.data.tokenizer import PAD, START
from nanocaption.export import web_runtime
from nanocaption.model.captioner import ImageToTextModel
from nanocaption.model.captions import caption_files
from nanocaption.use.attention import attend_maps
from tests.conftest import ROOT
from tests.processes import command
from tests.run.test_transformers import make_checkpoint

PAGE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with last.safetensors, an untrained model of a ViT, and my_captioner, its export."""
    place = tmp_path_factory.mktemp("use")
    path = make_checkpoint("ViT", place)
    export.main([str(path), str(place / "my_captioner")])
    return place


@pytest.fixture(scope="module")
def model(made) -> ImageToTextModel:
    return nanocaption.load(made / "my_captioner")


@pytest.fixture(scope="module")
def photos(demo_data) -> list[Path]:
    return sorted((demo_data / "demo" / "images").iterdir())[:16]


def test_equal_pixels_give_equal_captions_one_by_one_and_in_a_batch(model, photos):
    expected = [captions[0] for captions in caption_files(model, photos)]
    assert len({caption.text for caption in expected}) > 3
    arrays = [np.array(Image.open(photo).convert("RGB")) for photo in photos]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays]
    forms = (photos, [str(p) for p in photos], [p.read_bytes() for p in photos], map(Image.open, photos),
             (io.BytesIO(p.read_bytes()) for p in photos), arrays, tensors)  # fmt: skip
    for form in forms:
        assert [captions[0] for captions in model.captions(form)] == expected
    assert model.caption(iter(arrays)) == [caption.text for caption in expected]
    for array, caption in zip(arrays, expected, strict=True):
        assert model.caption(array) == caption.text
        assert model.captions([array])[0][0].log_prob == pytest.approx(caption.log_prob, abs=1e-5)
    upside_down = [array[::-1] for array in arrays]
    assert model.captions(upside_down) != model.captions(arrays)


def test_names_of_transformers_do_what_ours_do(model, photos):
    assert model.captions(photos, num_beams=4) == caption_files(model, photos, beam_size=4)
    two = model.captions(photos, num_beams=4, num_return_sequences=2)
    assert two == [captions[:2] for captions in model.captions(photos, num_beams=4)]
    short = model.captions(photos, max_new_tokens=3)
    assert all(len(caption.ids) <= 3 for captions in short for caption in captions)
    drawn = model.captions(photos, do_sample=True, num_return_sequences=3, temperature=1.5, seed=1)
    assert {len(captions) for captions in drawn} == {3}
    (alone,) = model.captions(photos[3:4], do_sample=True, num_return_sequences=3, temperature=1.5, seed=1)
    assert [caption.ids for caption in alone] == [caption.ids for caption in drawn[3]]
    assert model.captions(photos, do_sample=True, num_return_sequences=3, temperature=1.5, seed=2) != drawn
    assert model.captions(photos, do_sample=True, temperature=0.0) == model.captions(photos, num_beams=1)
    with pytest.raises(ValueError, match=r"captions\(\[picture\]"):
        model.caption(photos[0], num_return_sequences=2)
    with pytest.raises(ValueError, match="did you mean num_beams"):
        model.caption(photos[0], numbeams=2)
    for empty in ([], iter(())):
        with pytest.raises(ValueError, match="There is no picture to caption"):
            model.caption(empty)


def test_the_result_carries_tokens_and_attention_on_demand(model, photos):
    plain = model.captions(photos)
    found = model.captions(photos, attention=True, num_return_sequences=1)
    for photo, (caption,), before in zip(photos, found, plain, strict=True):
        assert caption._replace(attention=None) == before[0] and before[0].attention is None
        assert [model.tokenizer.token_to_id(token) for token in caption.tokens] == caption.ids
        assert caption.attention.shape == (len(caption.ids), 4, 4) and caption.attention.dtype == torch.float32
        if not caption.ids:
            continue
        assert 0 < caption.attention.sum((1, 2)).max() <= 1 + 1e-5
        pixels = Image.open(photo)
        (again,) = model.captions([pixels], attention=True, num_return_sequences=1)
        assert torch.allclose(again[0].attention, caption.attention, atol=1e-5)
    longest = max((captions[0] for captions in found), key=lambda caption: len(caption.ids))
    photo = photos[[captions[0] for captions in plain].index(longest._replace(attention=None))]
    from nanocaption.data.transform import load_image

    tokens = torch.tensor([[START, *longest.ids][: len(longest.ids)]])
    weights, side = model.cross_attention(load_image(photo, model.image_spec)[None], tokens)
    expected = weights[:, 0].mean((0, 2))[:, -side * side :].view(-1, side, side)
    assert torch.allclose(longest.attention, expected, atol=1e-5) and PAD == 0
    (maps,) = attend_maps(model, model.tokenizer, load_image(photo, model.image_spec)[None], [longest.ids])
    assert maps.side == side


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_captions_and_its_probabilities_are_float32(made, model, photos, dtype, tmp_path):
    kind = getattr(torch, dtype)
    for half in (nanocaption.load(made / "my_captioner", dtype=dtype), nanocaption.load(made / "last.safetensors",
                 device="cpu", dtype=kind), nanocaption.load(made / "my_captioner").to(kind)):  # fmt: skip
        assert {p.dtype for p in half.parameters()} == {kind} and half.mean.dtype == torch.float32
        assert torch.equal(half.mean, model.mean)
        found = half.captions(photos[:4], num_beams=2)
        own = half.captions(photos[:4], num_beams=2, attention=True)[0][0]
        for captions, expected in zip(found, model.captions(photos[:4], num_beams=2), strict=True):
            if captions[0].ids == expected[0].ids:
                assert captions[0].log_prob == pytest.approx(expected[0].log_prob, rel=0.05, abs=0.3)
        # float32: sums of logits of 8 or 11 bits would lie on their coarse grid.
        assert torch.tensor(own.log_prob).to(kind).item() != own.log_prob
    half.save_pretrained(tmp_path / "saved")
    back = nanocaption.load(tmp_path / "saved")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(back.parameters(), half.parameters(), strict=True))


@pytest.mark.parametrize("how, told", [
    ({"dtype": "int8"}, "dtype = 'int8': must be float32, bfloat16, float16"),
    ({"device": "gpu"}, "device = 'gpu': there is no such device. Give 'cpu'"),
    ({"device": "cuda:99"}, "device = 'cuda:99': this machine has"),
    ({"revision": "v1"}, "revision = 'v1' belongs to a model of the Hub"),
])  # fmt: skip
def test_a_wrong_device_type_or_revision_is_one_line(made, how, told):
    for name in ("my_captioner", "last.safetensors"):
        with pytest.raises(ValueError) as caught:
            nanocaption.load(made / name, **how)
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_eight_threads_give_what_one_gives(model, photos):
    jobs = [(photo, how) for photo in photos for how in (
        {}, {"num_beams": 1}, {"num_beams": 5, "no_repeat_ngram": 2},
        {"do_sample": True, "num_return_sequences": 3, "seed": 4},
    )] * 2  # fmt: skip
    one = [model.captions([photo], **how) for photo, how in jobs]
    assert len({captions[0][0].text for captions in one}) > 3
    start = threading.Barrier(8)

    def work(part: int) -> list:
        start.wait()
        return [model.captions([photo], **how) for photo, how in jobs[part::8]]

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(work, range(8)))
    assert [captions for row in zip(*parts, strict=True) for captions in row] == one


def test_a_model_that_kept_a_state_between_calls_would_be_noticed(model, photos):
    """The control of the test above: two decodings that share one step function do disturb each other."""
    from nanocaption.data.transform import load_image

    pixels = [load_image(photo, model.image_spec)[None] for photo in photos[:2]]
    tokens = torch.tensor([START])
    shared = model.start_decoding(pixels[0])
    first, second = shared(tokens, None).clone(), shared(tokens, None)
    assert not torch.equal(first, second)
    apart = model.start_decoding(pixels[0]), model.start_decoding(pixels[1])
    assert torch.equal(apart[0](tokens, None), first) and not torch.equal(apart[1](tokens, None), first)


def test_every_block_of_the_page_runs(made, photos, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "my_captioner", tmp_path / "my_captioner")
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    runtime = {web_runtime.BUNDLE: b"export const version = 0;", web_runtime.WASM: b"\0asm"}
    monkeypatch.setattr(web_runtime, "find_runtime", lambda given: runtime)  # no network
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "bash", "bash", "python", "bash", "python", "bash"]
    printed = []
    for kind, block in blocks:
        capsys.readouterr()
        if kind == "python":
            exec(compile(block, "docs/use.md", "exec"), {})
            printed.append(capsys.readouterr().out)
            continue
        for line in block.splitlines():
            done = command(tmp_path, *shlex.split(line, comments=True))
            assert done.code == 0, done.err
            printed.append(done.out)
    model = nanocaption.load("my_captioner")
    expected = model.captions(["photo.jpg"])[0][0]
    assert printed[0] == f"{expected.text}\n" and (printed[4] == printed[0] or expected.broken)
    assert printed[6] == f"photo.jpg: {shown(printed[0])}" and printed[7] == printed[0]  # without torch
    assert printed[8].startswith("page: my_captioner/model.safetensors") and Path("page/index.html").is_file()
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert {"--format", "--push", "--num-captions"} <= flags
