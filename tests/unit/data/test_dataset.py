"""From prepared data to batches: the shift by one, the order of an epoch, every kind of picture, the feature cache."""

import json
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from nanocaption.base.settings import load_settings
from nanocaption.data.dataset import ImageTextDataset, collate_fn, load_image
from nanocaption.data.inputs import keep_on_device, make_inputs
from nanocaption.data.loader import make_loader
from nanocaption.data.order import chunks, epoch_groups, in_order
from nanocaption.data.prepared import load_records
from nanocaption.data.tokenizer import train_tokenizer
from nanocaption.data.transform import Augment, augmented
from nanocaption.model.encoder import read_image_spec, scratch_image_spec

START, END, PAD = 1, 2, 0
SPEC = scratch_image_spec(16)


def pattern(width: int, height: int) -> Image.Image:
    """A picture with large shapes, fine stripes and soft slopes in different colours."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / width, 127 + 120 * np.sin(y / 3.0)
    blue = np.where((x // 9 + y // 7) % 2, 230, 20)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def picture_set(folder, counts, features=None):
    """A data set of len(counts) pictures; image i has counts[i] captions whose ids name the image and the caption."""
    for i in range(len(counts)):
        Image.new("RGB", (20, 16), (10 * i, 100, 200)).save(folder / f"{i}.png")
    records = [{"file_name": f"{i}.png"} for i in range(len(counts))]
    token_ids = [[[START, 10 + i, *[50 + c] * (c + 1), END] for c in range(n)] for i, n in enumerate(counts)]
    return ImageTextDataset(records, folder, token_ids, SPEC, features)


# --- captions and batches ---


def test_inputs_and_targets_are_shifted_by_one():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    batch = collate_fn([(image, [np.array([1, 7, 8, 9, 2]), np.array([1, 2])]), (image, [np.array([1, 5, 2])])])
    assert batch.decoder_input_tokens.tolist() == [[1, 7, 8, 9], [1, 0, 0, 0], [1, 5, 0, 0]]
    assert batch.target_tokens.tolist() == [[7, 8, 9, 2], [2, 0, 0, 0], [5, 2, 0, 0]]
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.images.shape == (2, 3, 2, 2) and batch.decoder_input_tokens.dtype == torch.int64


def test_pictures_without_captions_make_a_batch_too():
    batch = collate_fn([(torch.zeros(3, 2, 2), []), (torch.ones(3, 2, 2), [])])
    assert len(batch.images) == 2 and len(batch.image_index) == 0


def test_a_batch_moves_whole(tmp_path):
    batch = collate_fn([picture_set(tmp_path, [2])[(0, (0, 1))]])
    moved = batch.to(torch.device("meta"))
    tensors = [part for part in (*moved, *moved.places) if isinstance(part, torch.Tensor)]
    assert len(tensors) == 7 and {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_group_gives_its_own_picture_and_captions(tmp_path):
    images = picture_set(tmp_path, [3, 2])
    pixels, captions = images[(1, (1, 0))]
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 16)
    assert pixels[:, 8, 8].tolist() == [10, 100, 200]
    assert [ids.tolist() for ids in captions] == [[1, 11, 51, 51, 2], [1, 11, 50, 2]]
    part = images.part([1])
    assert len(part) == 1 and len(images) == 2
    assert torch.equal(part[(0, (0,))][0], pixels) and part[(0, (0,))][1][0].tolist() == [1, 11, 50, 2]
    images.cached = np.arange(2)
    assert images.part([1])[(0, ())][0] == 1
    images.keep_on(torch.arange(2))
    assert images.part([1])[(0, ())][0].item() == 1


def test_a_picture_that_comes_again_in_an_epoch_is_changed_anew(tmp_path):
    images = picture_set(tmp_path, [1])
    pattern(40, 40).save(images.paths[0])
    images.augment = Augment(0.3, True, 1)
    seen = images.at_epoch(2)
    first, again, third = (seen[(0, (0,), *visit)][0] for visit in ((), (1,), (2,)))
    assert torch.equal(first, seen[(0, (0,))][0])
    assert not torch.equal(first, again) and not torch.equal(again, third)


def test_load_records_takes_one_split_and_says_which_there_are(tmp_path):
    rows = [{"file_name": f"{i}.jpg", "split": "train" if i < 3 else "val", "captions": []} for i in range(5)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": rows}))
    assert load_records(tmp_path, "train") == rows[:3]
    assert load_records(tmp_path, "train", cutoff=2) == rows[:2]
    with pytest.raises(ValueError, match="no image of the split 'test'; it has train, val"):
        load_records(tmp_path, "test")


# --- views ---


class Halves:
    """Stands in for a model with a frozen encoder: the mean grey of a picture's left and right half, (N, 2, 1)."""

    image_spec, encoder = SPEC, torch.nn.Identity()

    def eval(self):
        pass

    def encoder_identity(self):
        return None

    def encode(self, images):
        return images.float().unflatten(3, (2, -1)).mean((1, 2, 4))[:, :, None] / 255


def views_of(tmp_path, views, captions=("a dog", "a cat", "a dog on the left")):
    """The data set of some pictures, darker on the left, with the features of their views as make_inputs keeps them."""
    settings = load_settings([
        "--freeze-encoder", "--encoder-model-name", "x", "--random-flip", "--random-crop-area", "0.5",
        "--feature-views", str(views), "--seed", "3",
    ])  # fmt: skip
    (tmp_path / "images").mkdir(exist_ok=True)
    for number in range(len(captions)):
        slope = np.tile(np.linspace(10, 200 + 10 * number, 16, dtype=np.uint8), (16, 1))
        Image.fromarray(slope).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    records = [{"file_name": f"{number}.png", "captions": [caption]} for number, caption in enumerate(captions)]
    tokenizer = train_tokenizer(captions, tmp_path / "tokenizer", 300)
    return make_inputs(settings, tmp_path, {"train": records}, tokenizer, Halves(), torch.device("cpu"))["train"]


def mirrored(features):
    return bool(features[0, 0] > features[1, 0])


def test_features_of_views_are_those_of_the_changed_pictures(tmp_path, capsys):
    images = views_of(tmp_path, 3)
    assert "1 of 3 training pictures stay as they are, as their captions name left or right" in capsys.readouterr().out
    rows = [[images.cached[3 * view + image] for view in range(3)] for image in range(3)]
    for image, own in enumerate(rows):
        for view, row in enumerate(own):
            expected = Halves().encode(images.view(image, view)[None])[0]
            assert np.allclose(row, expected.numpy(), atol=1e-3)
        assert torch.equal(images.view(image, 0), load_image(images.paths[image], SPEC))
    assert [[mirrored(row) for row in own] for own in rows] == [[False, True, False]] * 2 + [[False] * 3]
    assert not np.array_equal(rows[2][0], rows[2][1])  # cropped all the same


def test_an_epoch_draws_a_view_of_each_picture_and_validation_takes_the_first(tmp_path):
    images = views_of(tmp_path, 3)
    first = [images[(image, (0,))][0] for image in range(3)]
    assert all(np.array_equal(row, images.cached[image]) for image, row in enumerate(first))
    drawn = [images.at_epoch(epoch)[(1, (0,))][0] for epoch in range(30)]
    assert {tuple(row.ravel()) for row in drawn} == {tuple(images.cached[3 * view + 1].ravel()) for view in range(3)}
    assert np.array_equal(drawn[4], images.at_epoch(4)[(1, (0,))][0])
    part = images.part([1]).at_epoch(4)
    assert tuple(part[(0, (0,))][0].ravel()) in {tuple(row.ravel()) for row in drawn}


def test_all_views_stay_on_a_device_that_has_room(tmp_path, monkeypatch):
    images = views_of(tmp_path, 3)
    expected = [images.at_epoch(epoch)[(1, (0,))][0] for epoch in range(9)]
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30))
    monkeypatch.setattr(torch, "empty", lambda *size, device, **more: empty(*size, **more))
    keep_on_device(images, torch.device("cuda"))
    assert len(images.resident) == 9
    numbers = [int(images.at_epoch(epoch)[(1, (0,))][0]) for epoch in range(9)]
    assert all(np.array_equal(images.resident[n], row) for n, row in zip(numbers, expected, strict=True))
    assert len(set(numbers)) == 3  # the control: other views are drawn


def test_a_picture_whose_captions_name_a_side_is_never_mirrored(tmp_path):
    images = views_of(tmp_path, 0)
    images.cached, images.augment = None, Augment(1.0, True, 1)
    epochs = [images.at_epoch(epoch) for epoch in range(12)]
    seen = {image: {tuple(epoch[(image, (0,))][0].flatten().tolist()) for epoch in epochs} for image in (0, 2)}
    assert [len(pictures) for pictures in seen.values()] == [2, 1]


# --- the order of an epoch ---

RAGGED = [5, 1, 0, 3, 7, 2, 5, 5]


@pytest.mark.parametrize("counts", [[5] * 6, RAGGED])
@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_an_epoch_visits_every_pair_once(counts, per_image):
    groups = epoch_groups(counts, per_image, seed=3, epoch=1)
    pairs = [(image, caption) for image, captions in groups for caption in captions]
    assert sorted(pairs) == [(image, caption) for image, count in enumerate(counts) for caption in range(count)]
    assert max(len(captions) for _, captions in groups) <= per_image
    assert all(captions for _, captions in groups)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return epoch_groups([5] * 20, 2, seed, epoch)

    random.seed(1)
    first = order(1, 0)
    random.seed(2)
    assert order(1, 0) == first
    assert order(1, 1) != first and order(2, 0) != first and order(1, 10) != order(11, 0)
    assert [image for image, _ in first] != sorted(image for image, _ in first)
    company = [{(image, frozenset(captions)) for image, captions in order(1, epoch)} for epoch in range(2)]
    assert company[0] != company[1]  # other captions of an image travel together


def test_in_order_gives_every_image_with_all_its_captions():
    assert in_order([2, 0, 1]) == [(0, (0, 1)), (1, ()), (2, (0,))]


def test_loader_keeps_the_order_and_leaves_the_global_generators_alone(tmp_path):
    images = picture_set(tmp_path, [2, 3, 1])
    batches = [[(2, (0,)), (0, (1, 0))], [(1, (2,))]]
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    loader = make_loader(images, batches, workers=0)
    found = list(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]
    assert len(loader) == 2
    assert found[0].target_tokens[:, 0].tolist() == [12, 10, 10]
    assert found[0].image_index.tolist() == [0, 1, 1]
    assert found[1].target_tokens.tolist() == [[11, 52, 52, 52, 2]]


def test_worker_processes_give_the_same_batches(tmp_path):
    images = picture_set(tmp_path, [2, 3, 1])
    batches = chunks(epoch_groups([2, 3, 1], 2, seed=1, epoch=0), 2)
    state = torch.get_rng_state()
    several = list(make_loader(images, batches, workers=2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(make_loader(images, batches, workers=0), several, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
        assert str(one.places) == str(two.places)


# --- pictures ---

PREPROCESSORS = {
    "ViT": {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
    "CLIP": {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_center_crop": True, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 3,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.27, 0.28],
    },
    "DINOv2": {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "do_center_crop": True, "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    },
    "SigLIP": {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PREPROCESSORS)
def test_transform_equals_the_image_processor_of_transformers(tmp_path, kind):
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[kind]))
    spec = read_image_spec(str(tmp_path))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for width, height in [(83, 61), (50, 75), (21, 30)]:  # wide, tall, to be enlarged
        for name in ("a.png", "a.jpg"):
            pattern(width, height).save(tmp_path / name, **({"quality": 95} if name == "a.jpg" else {}))
            with Image.open(tmp_path / name) as image:
                theirs = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            mean, std = (torch.tensor(spec[key]).view(3, 1, 1) for key in ("mean", "std"))
            grey_levels = 255 * (theirs * std + mean)
            ours = load_image(tmp_path / name, spec).float()
            assert ours.shape == (3, 32, 32)
            assert (ours - grey_levels).abs().max() <= 2
            assert (ours.roll(1, -1) - grey_levels).abs().max() > 2  # shifted by a pixel it would not pass


def save_every_kind(folder) -> dict[str, tuple]:
    """name -> (file, the colour its middle must have)"""
    grey16 = Image.fromarray(np.full((40, 40), 200 << 8, dtype=np.uint16))
    half_red = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 30, 160, 70])
    clear = Image.new("P", (40, 40), 0)
    clear.putpalette([0, 0, 0, 9, 9, 9])
    files = {
        "grey": (Image.new("L", (40, 40), 90), "png", {}, (90, 90, 90)),
        "grey jpeg": (Image.new("L", (40, 40), 90), "jpg", {}, (90, 90, 90)),
        "black and white": (Image.new("1", (40, 40), 1), "png", {}, (255, 255, 255)),
        "palette": (palette, "png", {}, (30, 160, 70)),
        "palette gif": (palette, "gif", {}, (30, 160, 70)),
        "transparent palette": (clear, "png", {"transparency": 0}, (255, 255, 255)),
        "grey alpha": (Image.new("LA", (40, 40), (0, 0)), "png", {}, (255, 255, 255)),
        "alpha": (half_red, "png", {}, (255, 127, 127)),
        "16 bit": (grey16, "png", {}, (200, 200, 200)),
        "16 bit tiff": (grey16, "tif", {}, (200, 200, 200)),
        "CMYK": (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "jpg", {}, (255, 0, 0)),
        "webp": (Image.new("RGB", (40, 40), (10, 20, 200)), "webp", {"lossless": True}, (10, 20, 200)),
        "tiny": (Image.new("RGB", (1, 1), (1, 2, 3)), "png", {}, (1, 2, 3)),
        "upper case": (Image.new("RGB", (40, 40), (0, 0, 250)), "JPG", {}, (0, 0, 250)),
    }
    found = {}
    for name, (image, ending, arguments, colour) in files.items():
        image.save(folder / f"{name}.{ending}", **arguments)
        found[name] = (folder / f"{name}.{ending}", colour)
    # the right content under a wrong name
    half_red.save(folder / "png.png")
    os.rename(folder / "png.png", folder / "png called.jpg")
    Image.new("RGB", (40, 40), (0, 120, 0)).save(folder / "jpeg.jpg", quality=95)
    os.rename(folder / "jpeg.jpg", folder / "jpeg called.png")
    found |= {"png as jpg": (folder / "png called.jpg", (255, 127, 127))}
    found |= {"jpg as png": (folder / "jpeg called.png", (0, 120, 0))}
    return found


def test_every_kind_of_picture_comes_out_in_its_colours(tmp_path):
    for name, (path, colour) in save_every_kind(tmp_path).items():
        pixels = load_image(path, SPEC)
        assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8, name
        off = np.abs(np.array(pixels[:, 8, 8].tolist()) - np.array(colour)).max()
        assert off <= 3, f"{name}: {pixels[:, 8, 8].tolist()} instead of {colour}"


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_picture_stands_upright_as_its_exif_says(tmp_path, ending):
    image = pattern(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    sharp = {"quality": 95, "subsampling": 0} if ending == "jpg" else {}
    image.save(tmp_path / f"turned.{ending}", exif=exif, **sharp)
    image.rotate(-90, expand=True).save(tmp_path / f"upright.{ending}", **sharp)
    image.save(tmp_path / f"plain.{ending}", **sharp)
    spec = {**SPEC, "size": 32, "resize": 32}
    turned, upright, plain = (
        load_image(tmp_path / f"{name}.{ending}", spec).int() for name in ("turned", "upright", "plain")
    )
    assert (turned - upright).abs().float().mean() < 3
    assert (turned - plain).abs().float().mean() > 30


@pytest.mark.parametrize("name", ["no.jpg", "text.jpg", "text.png", "empty.jpg", "cut.jpg", "cut.png", "folder.jpg"])
def test_a_broken_picture_is_named_in_one_line(tmp_path, name):
    pattern(300, 300).save(tmp_path / "cut.jpg")
    pattern(300, 300).save(tmp_path / "cut.png")
    for cut in ("cut.jpg", "cut.png"):
        (tmp_path / cut).write_bytes((tmp_path / cut).read_bytes()[:600])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ValueError) as caught:
        load_image(tmp_path / name, SPEC)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


# --- augmentation ---


@pytest.mark.parametrize("area", [0.3, 0.9])
def test_a_crop_keeps_its_share_of_the_area(monkeypatch, area):
    """Shapes that do not fit must not be cut off."""
    seen = []
    monkeypatch.setattr(
        "nanocaption.data.transform.resized", lambda pixels, *_: seen.append(pixels.shape[1:]) or pixels
    )
    for seed in range(300):
        augmented(torch.zeros(3, 200, 200, dtype=torch.uint8), Augment(area, False, 1), random.Random(seed))
    shares = [height * width / 200**2 for height, width in seen]
    assert min(shares) > area - 0.01 and max(shares) > 0.97 and min(shares) < area + 0.1
    assert all(0.74 < height / width < 1.35 for height, width in seen)
    assert {height < width for height, width in seen} == {True, False}


def test_augmentation_is_a_function_of_its_seed_and_leaves_the_picture():
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    before, how = pixels.clone(), Augment(0.5, True, 1)
    results = [augmented(pixels, how, random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(pixels, before) and results[0].shape == pixels.shape and results[0].dtype == torch.uint8
    flips = [augmented(pixels, Augment(1.0, True, 1), random.Random(seed)) for seed in range(400)]
    mirrored = sum(torch.equal(flip, pixels.flip(-1)) for flip in flips)
    assert 160 < mirrored < 240 and mirrored + sum(torch.equal(flip, pixels) for flip in flips) == 400
