"""What the page computes in JavaScript is what Python computes: pixels to the byte, texts, ids of searches."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanocaption.data.fitting import fitted_array
from nanocaption.data.pictures import convert_image
from nanocaption.data.tokenizer import END, START, encode, read_text, train_tokenizer
from nanocaption.data.transform import seen_part
from nanocaption.export import web_export
from nanocaption.model import decode_numpy, ending_tables
from nanocaption.model.options import Options
from nanocaption.use.attention import words_of

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")
PAGE = Path(web_export.__file__).with_name("page")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECS = [
    {"size": 16, "resize": 16, "crop": False, "interpolation": "bilinear"},
    {"size": 24, "resize": 24, "crop": True, "interpolation": "bicubic"},
    {"size": 20, "resize": 27, "crop": True, "interpolation": "bilinear"},
    {"size": 30, "resize": [19, 41], "crop": True, "interpolation": "bicubic"},  # black borders above and below
    {"size": 21, "resize": 16, "crop": True, "interpolation": "nearest-exact"},  # and all around
    {"size": 17, "resize": 17, "crop": False, "interpolation": "nearest"},
]
SHAPES = [(37, 53), (16, 16), (24, 61), (9, 5), (300, 41), (201, 640)]
TEXTS = ["A dog runs on the beach.", "naïve café — 東京 🐕!", "two  spaces", "a marked \ufffd one", "x"]


def run(tmp_path: Path, program: str, given: object) -> dict:
    """What `program` leaves in `result`, with the modules of the page at hand and `given` of JSON."""
    for path in PAGE.glob("*.js"):
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "given.json").write_text(json.dumps(given))
    head = """
        import {readFileSync, writeFileSync} from "node:fs";
        import {fitted, normalised, seenPart} from "./resize.js";
        import {endingsOf, search} from "./search.js";
        import {readTokenizer, textOf, wordsOf} from "./tokenizer.js";
        const given = JSON.parse(readFileSync("given.json", "utf8"));
        """
    (tmp_path / "program.js").write_text(f"{head}{program}\nwriteFileSync('result.json', JSON.stringify(result));")
    done = subprocess.run([NODE, "program.js"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "result.json").read_text())


def drawn(kind: str, shape: tuple[int, int]) -> np.ndarray:
    """RGBA (H, W, 4)"""
    generator = np.random.default_rng(sum(shape))
    pixels = generator.integers(0, 256, (*shape, 4), np.uint8)
    if kind == "black and white":
        pixels[:] = generator.integers(0, 2, (*shape, 1), np.uint8) * 255
    if kind != "alpha":
        pixels[:, :, 3] = 255
    return pixels


def packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def test_pixels_are_those_of_python_to_the_byte(tmp_path):
    cases = [(kind, shape, spec | {"mean": MEAN, "std": STD}) for kind in ("noise", "black and white", "alpha")
             for shape in SHAPES for spec in SPECS]  # fmt: skip
    given = [{"height": shape[0], "width": shape[1], "spec": spec, "rgba": packed(drawn(kind, shape))}
             for kind, shape, spec in cases]  # fmt: skip
    program = """
        const result = given.map(({height, width, spec, rgba}) => {
          const data = Buffer.from(rgba, "base64"), row = width * 4;
          const pixels = fitted(height, width, spec, (top, count) => data.subarray(top * row, (top + count) * row));
          const values = Buffer.from(normalised(pixels, spec).buffer).toString("base64");
          return {pixels: Buffer.from(pixels).toString("base64"), values, box: seenPart(height, width, spec)};
        });
        """
    own = run(tmp_path, program, given)
    picture = tmp_path / "picture.png"
    for (kind, shape, spec), found in zip(cases, own, strict=True):
        pixels = convert_image(Image.fromarray(drawn(kind, shape))).pixels
        expected = fitted_array(pixels, spec)
        size = spec["size"]
        got = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(size, size, 3)
        assert np.array_equal(got, expected), (kind, shape, spec, np.abs(got.astype(int) - expected).max())
        mean, std = (np.array(spec[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
        values = (expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
        assert np.array_equal(np.frombuffer(base64.b64decode(found["values"]), np.float32), values.ravel())
        if kind == "noise":
            Image.fromarray(pixels).save(picture)
            assert np.allclose(found["box"], seen_part(picture, spec))
    control = fitted_array(convert_image(Image.fromarray(drawn("noise", (37, 53)))).pixels, SPECS[1])
    assert not np.array_equal(control, fitted_array(np.zeros((37, 53, 3), np.uint8), SPECS[1]))


def test_large_pictures_are_read_in_strips_with_the_same_result(tmp_path):
    program = """
        const asked = [];
        const level = (x, y) => (x * 7 + y * 13 + (x * y) % 31) % 256;
        const pixels = fitted(1500, 2100, given, (top, count) => {
          asked.push(count);
          const rows = new Uint8Array(count * 2100 * 4).fill(255);
          for (let i = 0; i < rows.length; i += 4) rows[i] = level(i / 4 % 2100, top + Math.floor(i / 8400));
          return rows;
        });
        const result = {asked, pixels: Array.from(pixels)};
        """
    spec = {"size": 32, "resize": 32, "crop": True, "interpolation": "bilinear"}
    found = run(tmp_path, program, spec)
    x, y = np.meshgrid(np.arange(2100), np.arange(1500))
    pixels = np.full((1500, 2100, 3), 255, np.uint8)
    pixels[:, :, 0] = (x * 7 + y * 13 + (x * y) % 31) % 256
    assert np.array_equal(np.array(found["pixels"]).reshape(32, 32, 3), fitted_array(pixels, spec))
    assert len(found["asked"]) > 3 and sum(found["asked"]) == 1500


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer([*TEXTS, "a dog on a beach with the dog"] * 3, folder, 330), folder / "tokenizer.json"


def test_texts_and_words_are_those_of_python_broken_ones_too(tokenizer, tmp_path):
    made, path = tokenizer
    generator = np.random.default_rng(0)
    rows = [encode(made, text, 200)[1:] for text in TEXTS]
    rows += [generator.integers(0, made.get_vocab_size(), 12).tolist() for _ in range(300)]
    assert sum(read_text(made, ids)[1] for ids in rows) > 50  # broken
    program = """
        const tokenizer = readTokenizer(given.tokenizer);
        const result = given.rows.map(ids => ({text: textOf(tokenizer, ids), words: wordsOf(tokenizer, ids)}));
        """
    own = run(tmp_path, program, {"tokenizer": json.loads(path.read_text()), "rows": rows})
    for ids, found in zip(rows, own, strict=True):
        assert found["text"] == read_text(made, ids)[0]
        assert [(word["text"], word["places"]) for word in found["words"]] == words_of(made, ids)


SEARCHES = [
    Options(), Options(beam_size=2), Options(beam_size=3, length_penalty=0.7), Options(beam_size=5, length_penalty=2.0),
    Options(beam_size=3, length_penalty=0.0), Options(beam_size=3, min_length=5), Options(min_length=4),
    Options(beam_size=3, no_repeat_ngram=2), Options(no_repeat_ngram=1), Options(beam_size=4, no_repeat_ngram=1),
    Options(beam_size=3, no_bad_endings=True), Options(no_bad_endings=True, min_length=2),
    Options(beam_size=5, no_bad_endings=True, no_repeat_ngram=2, min_length=3),
]  # fmt: skip


def test_searches_find_the_ids_that_numpy_finds(tokenizer, tmp_path):
    made, path = tokenizer
    words, longest, seeds = made.get_vocab_size(), 9, range(6)
    tables = ending_tables.tables_of(made)

    def numbers(seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits by place (L, V) and by the token before (V, V), which are added."""
        generator = np.random.default_rng(seed)
        by_place = generator.normal(0, 1.5, (longest, words)).astype(np.float32)
        by_place[:, END] += 2
        return by_place, generator.normal(0, 1.5, (words, words)).astype(np.float16).astype(np.float32)

    def by_numpy(seed: int, options: Options) -> list:
        by_place, by_token = numbers(seed)
        place = iter(range(longest))
        limits = decode_numpy.Limits(START, END, longest, tables)
        step = lambda tokens, _: by_place[next(place)] + by_token[tokens]  # noqa: E731
        return decode_numpy.decode(step, 1, options, limits)[0]

    program = """
        const floats = text => new Float32Array(Uint8Array.from(Buffer.from(text, "base64")).buffer);
        const bytes = readTokenizer(given.tokenizer).bytes, endings = endingsOf(given.automaton, bytes, 2);
        const result = [];
        for (const {byPlace, byToken} of given.numbers) {
          const place = floats(byPlace), token = floats(byToken), size = bytes.length;
          for (const {no_bad_endings, ...o} of given.searches) {
            let at = 0;
            const step = async tokens => {
              const start = at++ * size, row = one => (_, i) => place[start + i] + token[one * size + i];
              return tokens.map(one => Float32Array.from({length: size}, row(one)));
            };
            const options = {beamSize: o.beam_size, lengthPenalty: o.length_penalty, minLength: o.min_length,
              noRepeatNgram: o.no_repeat_ngram};
            const limits = {startId: 1, endId: 2, maxLength: given.longest, endings: no_bad_endings ? endings : null};
            result.push(await search(step, options, limits));
          }
        }
        """
    given = {
        "tokenizer": json.loads(path.read_text()), "automaton": web_export._automaton(), "longest": longest,
        "numbers": [{"byPlace": packed(one), "byToken": packed(two)} for one, two in map(numbers, seeds)],
        "searches": [options._asdict() for options in SEARCHES],
    }  # fmt: skip
    own = iter(run(tmp_path, program, given))
    texts = set()
    for seed in seeds:
        for options in SEARCHES:
            expected, found = by_numpy(seed, options), next(own)
            assert [one["ids"] for one in found] == [one.ids for one in expected], (seed, options)
            assert np.allclose([one["logProb"] for one in found], [one.log_prob for one in expected], atol=1e-4)
            assert np.allclose([one["score"] for one in found], [one.score for one in expected], atol=1e-4)
            texts.add((seed, *expected[0].ids))
    assert len(texts) > 3 * len(seeds)  # the options make a difference


def test_a_model_that_gives_no_numbers_is_told(tmp_path):
    program = """
        const limits = {startId: 1, endId: 2, maxLength: 5, endings: null};
        const step = async tokens => tokens.map(() => new Float32Array(9).fill(NaN));
        const options = {lengthPenalty: 1, minLength: 0, noRepeatNgram: 0};
        const result = [];
        for (const beamSize of [1, 3]) result.push(...await search(step, {...options, beamSize}, limits));
        """
    assert run(tmp_path, program, None) == [{"ids": [], "logProb": None, "score": None}] * 2  # NaN in JSON
