"""The pixels of the path without torch are those of torch's, to the bit, and what is refused is refused alike."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from nanocaption.data.any_picture import fitted_picture, fitted_pictures
from nanocaption.data.fitting import ImageSpec, fitted_array, resized_array
from nanocaption.data.picture_forms import fitted_form, fitted_forms
from nanocaption.data.transform import fitted, load_image, resized
from tests.conftest import ROOT

SPEC: ImageSpec = {
    "size": 32, "resize": 32, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
}  # fmt: skip
NATIVE = ROOT.parent / "shared" / "data" / "flickr8k_native"
SHAPES = [(375, 500), (64, 64), (40, 300), (33, 57), (224, 500), (7, 5), (700, 90), (3, 3), (1, 20), (900, 450)]


def picture(height: int, width: int) -> np.ndarray:
    """Noise, of black and white alone where the height is odd: what rounds worst."""
    rng = np.random.default_rng(height)
    levels = rng.choice([0, 255], (height, width, 3)) if height % 2 else rng.integers(0, 256, (height, width, 3))
    return levels.astype(np.uint8)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest-exact", "nearest"])
def test_resized_bytes_are_torchs(mode):
    fast = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX")
    for height, width in SHAPES:
        pixels = picture(height, width)
        for new in ((224, 224), (64, 64), (24, 31), (height, 50), (50, width)):
            expected = resized(channels_first(pixels), *new, mode).permute(1, 2, 0).numpy()
            off = np.abs(resized_array(pixels, *new, mode).astype(int) - expected).max()
            assert off <= (0 if fast else 1), (height, width, new)
    # The control: Pillow's resize, of which both are copies with 16 bits, is not the same.
    if mode == "bicubic":
        pillow = np.array(Image.fromarray(picture(375, 500)).resize((224, 224), Image.Resampling.BICUBIC))
        assert (pillow != resized_array(picture(375, 500), 224, 224, mode)).any()


@pytest.mark.parametrize("changes", [
    {}, {"crop": True}, {"crop": True, "resize": 40}, {"crop": True, "resize": 20}, {"resize": [40, 35], "crop": True},
    {"crop": True, "resize": 33, "interpolation": "bilinear"},
])  # fmt: skip
def test_what_an_encoder_is_given_is_what_torch_would_give_it(changes):
    spec: ImageSpec = {**SPEC, **changes}
    for height, width in SHAPES:
        pixels = picture(height, width)
        assert np.array_equal(fitted_array(pixels, spec), fitted(channels_first(pixels), spec).permute(1, 2, 0))


def test_every_form_gives_the_bytes_of_the_path_with_torch(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(64, 48)).save(path, exif=Image.Exif())
    pixels = np.array(Image.open(path))
    grey = pixels[:, :, 0]
    floats, tensor = pixels.astype("f4") / 255, channels_first(pixels)
    forms = [path, str(path), path.read_bytes(), Image.open(path), pixels, pixels / 255, floats, grey, grey[:, :, None],
             tensor, tensor.bfloat16() / 256, pixels[::-1]]  # fmt: skip
    for form in forms:
        assert np.array_equal(fitted_form(form, SPEC), fitted_picture(form, SPEC).permute(1, 2, 0))
    with path.open("rb") as file, io.BytesIO(path.read_bytes()) as other:
        assert np.array_equal(fitted_form(file, SPEC), fitted_form(other, SPEC))
    assert (fitted_form(pixels[::-1], SPEC) != fitted_form(pixels, SPEC)).any()


@pytest.mark.parametrize("wrong", [
    "https://a.b/c.jpg", "missing.jpg", b"", b"no picture", io.BytesIO(), io.StringIO("text"), 3, None,
    np.zeros((2, 3, 40, 40)), np.zeros((3, 40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), np.full((9, 9, 3), 2.0),
    np.full((9, 9, 3), np.nan), np.zeros((0, 9, 3), np.uint8), np.zeros((40, 40, 3), np.int64), torch.zeros(40, 40, 3),
])  # fmt: skip
def test_what_is_no_picture_is_refused_in_the_same_words(wrong):
    def told(fit) -> str:
        if isinstance(wrong, io.IOBase):
            wrong.seek(0)
        with pytest.raises(ValueError) as caught:
            fit(wrong, SPEC)
        return str(caught.value)

    assert told(fitted_form) == told(fitted_picture) and "\n" not in told(fitted_form)


def test_a_list_is_read_as_it_is_asked_for_and_says_which_fails():
    good = picture(9, 9)
    read = fitted_forms(iter([good, b"broken"]), SPEC)
    assert next(read).shape == (32, 32, 3)
    with pytest.raises(ValueError, match=r"Picture 1 \(counted from 0\): The picture of 6 bytes cannot be read"):
        next(read)
    for one in (good, "a.jpg", torch.zeros(3, 9, 9)):
        for fit in (fitted_forms, fitted_pictures):
            with pytest.raises(ValueError, match="is one picture, not a list"):
                list(fit(one, SPEC))


@pytest.mark.long
@pytest.mark.skipif(not NATIVE.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("changes", [{"size": 224, "resize": 224}, {"size": 224, "resize": 256, "crop": True}], ids=str)
def test_real_photographs_have_the_bytes_of_the_path_with_torch(changes):
    paths = sorted(NATIVE.glob("*.jpg"))
    assert len(paths) > 200
    for path in paths:
        spec: ImageSpec = {**SPEC, **changes}
        assert np.array_equal(fitted_form(path, spec), load_image(path, spec).permute(1, 2, 0)), path
