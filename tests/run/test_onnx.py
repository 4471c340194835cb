"""An ONNX export gives torch's captions, without torch; what is no whole export of this version is one line."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import nanocaption
from nanocaption.commands import caption, export, upload
from nanocaption.export import as_onnx, onnx_export, web_runtime
from nanocaption.export.as_transformers import drawn_pictures
from nanocaption.model import exported, onnx_folder
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.onnx_captioner import OnnxCaptioner
from nanocaption.runs import checkpoint
from nanocaption.use.load import find_checkpoint
from tests.conftest import ROOT, run_command
from tests.hub_server import point_to, serve
from tests.run.test_transformers import KINDS, SIZES, make_checkpoint

# Encoders of every kind, also those that no model of transformers can hold.
ALL_KINDS = {
    **KINDS,
    "from scratch, conv": (None, {}, {}, "--vit-stem conv --vit-layers 2"),
    "ViT, two of its layers": ("ViT", KINDS["ViT"][1], KINDS["ViT"][2], "--encoder-layers 1,2"),
    "DINOv2, SwiGLU": ("Dinov2", {**SIZES, "image_size": 56, "use_swiglu_ffn": True}, KINDS["DINOv2"][2], ""),
}


def seeded(make, *arguments):
    """A random model that is the same one in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make(*arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """last.safetensors, an untrained model with an encoder at another size than its own, and its export "light"."""
    place = tmp_path_factory.mktemp("onnx")
    more = "--beam-size 3 --length-penalty 0.7 --min-length 2 --no-repeat-ngram 3"
    path = seeded(make_checkpoint, "ViT at another size", place, more)
    export.main([str(path), str(place / "light"), "--format", "onnx", "--precision", "both"])
    return place


@pytest.fixture(scope="module")
def ours(made) -> ImageToTextModel:
    return nanocaption.load(made / "last.safetensors")


@pytest.fixture(scope="module")
def light(made) -> OnnxCaptioner:
    return nanocaption.load(made / "light")


@pytest.fixture(scope="module")
def photos(demo_data) -> list[Path]:
    return sorted((demo_data / "demo" / "images").iterdir())[:16]


def ids(found) -> list[list[list[int]]]:
    return [[caption.ids for caption in captions] for captions in found]


# --- The graphs ---


@pytest.mark.long
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_encoder_gives_the_same_captions(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, kind, ALL_KINDS[kind])
    path = seeded(make_checkpoint, kind, tmp_path, "--min-length 3")
    ours = assemble(checkpoint.load(path))
    found = onnx_export.write_onnx(tmp_path / "light", checkpoint.load(path), "card", "both")
    assert [(one.precision, one.same == one.captions) for one in found][0] == ("fp32", True)
    assert found[0].logits < 1e-4 and found[1].logits < 0.1
    assert len({caption.text for (caption, *_) in ours.captions(
        [pixels.permute(1, 2, 0).numpy() for pixels in drawn_pictures(ours, 8)])}) > 1  # fmt: skip
    light = OnnxCaptioner(tmp_path / "light")
    ours.memory_projection.weight.data[0] += 0.5  # the control
    with pytest.raises(ValueError, match="onnxruntime('s logits| does not give the same caption)"):
        onnx_export.compare(ours, light)


@pytest.mark.parametrize("how", [
    {}, {"num_beams": 1}, {"num_beams": 5, "length_penalty": 0.3, "no_repeat_ngram": 2}, {"max_new_tokens": 3},
    {"num_beams": 4, "num_beam_groups": 2}, {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3, "seed": 5, "temperature": 1.3, "top_p": 0.9},
    {"do_sample": True, "top_k": 9, "seed": 2**40},
], ids=str)  # fmt: skip
def test_captions_are_those_of_torch(ours, light, photos, how):
    expected, found = ours.captions(photos, **how), light.captions(photos, **how)
    assert ids(found) == ids(expected) and len({caption.text for captions in found for caption in captions}) > 3
    for own, theirs in zip(expected, found, strict=True):
        for a, b in zip(own, theirs, strict=True):
            assert a._replace(log_prob=0, score=0) == b._replace(log_prob=0, score=0) and type(a) is type(b)
            assert (b.log_prob, b.score) == pytest.approx((a.log_prob, a.score), abs=1e-4)
    for photo, captions in zip(photos[:3], found, strict=False):  # batched is single
        assert ids(light.captions([photo], **how)) == ids([captions])


def test_any_batch_and_any_form_of_a_picture(ours, light, photos):
    texts = ours.caption(photos)
    assert light.caption(photos) == texts and light.caption(iter(photos[:1])) == texts[:1]
    assert light.caption(photos[0]) == texts[0] and light.caption(photos[1].read_bytes()) == texts[1]
    many = photos * 3  # more than are taken at once
    assert light.caption(many) == texts * 3
    with pytest.raises(ValueError, match="did you mean num_beams"):
        light.caption(photos[0], numbeams=2)
    with pytest.raises(ValueError, match="There is no picture to caption"):
        light.caption([])
    with pytest.raises(ValueError, match=r"captions\(\[picture\]"):
        light.caption(photos[0], num_return_sequences=2)


def test_attention_is_that_of_torch(ours, light, photos):
    how = {"attention": True, "num_beams": 3}
    for own, theirs in zip(ours.captions(photos, **how), light.captions(photos, **how), strict=True):
        for a, b in zip(own, theirs, strict=True):
            assert isinstance(b.attention, np.ndarray) and b.attention.shape == a.attention.shape
            assert np.abs(b.attention - a.attention.numpy()).max(initial=0) < 1e-5
    assert light.captions(photos[:1])[0][0].attention is None


def test_threads_share_one_model(light, photos):
    jobs = [(photo, how) for photo in photos for how in ({}, {"num_beams": 1}, {"do_sample": True, "seed": 4})]
    one = [light.captions([photo], **how) for photo, how in jobs]
    start = threading.Barrier(4)

    def work(part: int) -> list:
        start.wait()
        return [light.captions([photo], **how) for photo, how in jobs[part::4]]

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(work, range(4)))
    assert [captions for row in zip(*parts, strict=True) for captions in row] == one


def test_int8_is_chosen_by_name_and_is_near(made, ours, light, photos):
    small = nanocaption.load(made / "light", dtype="int8")
    assert nanocaption.OnnxCaptioner(made / "light", "int8").precision == small.precision == "int8"
    assert nanocaption.load(made / "light").precision == "fp32"
    assert ids(small.captions(photos)) != [] and onnx_export.compare(ours, small).logits < 0.1
    sizes = [sum((made / "light" / name).stat().st_size for name in onnx_export.graph_names(one))
             for one in ("fp32", "int8")]  # fmt: skip
    assert sizes[1] < sizes[0]
    # Nothing that meets the weights is rounded, which would depend on what else is in the batch.
    together, alone = small.captions(photos), [small.captions([photo])[0] for photo in photos]
    assert ids(together) == ids(alone)
    numbers = [[caption.log_prob for caption in found[0]] for found in (together, alone)]
    assert np.allclose(*numbers, atol=1e-4)
    exact = light.captions(photos)[0]
    assert not np.allclose([caption.log_prob for caption in exact], numbers[0], atol=1e-4)
    for how, told in (({"dtype": "bfloat16"}, "dtype = 'bfloat16': an ONNX export is run as it was written"),
                      ({"device": "cuda"}, "device = 'cuda': an ONNX export runs on the CPU"),
                      ({"revision": "v1"}, "revision = 'v1' belongs to a model of the Hub")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            nanocaption.load(made / "light", **how)


# --- The folder ---


def test_nothing_of_torch_is_imported_on_the_way(made, ours, photos, tmp_path):
    code = f"""
import sys
heavy = ("torch", "torchvision", "transformers", "onnx", "safetensors", "huggingface_hub", "matplotlib", "tqdm")
for name in heavy:
    sys.modules[name] = None
import nanocaption
from nanocaption.__main__ import main
model = nanocaption.load({str(made / "light")!r})
print(ascii(model.captions([{str(photos[0])!r}], attention=True)[0][0].text))
sys.argv = ["nanocaption", "caption", {str(photos[0])!r}, "--checkpoint", {str(made / "light")!r}, "--json",
            "--length-penalty", "0.7", "--min-length", "2", "--no-repeat-ngram", "3"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    expected = ours.captions([photos[0]])[0][0]
    assert first == ascii(expected.text)
    (row,) = json.loads(rest)
    assert row["captions"][0]["caption"] == expected.text
    assert row["captions"][0]["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)


def test_without_onnxruntime_one_line_says_what_to_install(made, photos, tmp_path):
    code = f"""
import importlib.util as u, sys
real = u.find_spec
u.find_spec = lambda name, *rest: None if name == "onnxruntime" else real(name, *rest)
import nanocaption
from nanocaption.__main__ import main
try:
    nanocaption.load({str(made / "light")!r})
except ImportError as error:
    print(error)
sys.argv = ["nanocaption", "caption", {str(photos[0])!r}, "--checkpoint", {str(made / "light")!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    install = "of an ONNX export needs onnxruntime: pip install 'nanocaption[onnx]'\n"
    assert done.stdout == f"nanocaption.load {install}" and done.stderr == f"nanocaption caption {install}"


def test_the_command_captions_as_with_torch(made, photos, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")

    def told(checkpoint: str, *words: str) -> tuple[int, str, str]:
        files = [*map(str, photos), str(broken)]
        code = run_command(caption.main, [*files, "--checkpoint", str(made / checkpoint), *words])
        return (code, *capsys.readouterr())

    for words in ((), ("--num-captions", "2", "--beam-size", "4"), ("--sample", "--seed", "3", "--num-captions", "2"),
                  ("--max-length", "3")):  # fmt: skip
        own, theirs = told("last.safetensors", *words), told("light", *words)
        assert own == theirs and own[0] == 1 and "broken.jpg cannot be read" in own[2]
    code, _, err = told("light", "--attention", str(tmp_path / "a.png"))
    assert code == 1 and "--attention draws one picture" in err
    one = [str(photos[0]), "--checkpoint", str(made / "light"), "--attention", str(tmp_path / "a.png")]
    code = run_command(caption.main, one)
    assert code == 1 and "--attention draws with torch" in capsys.readouterr().err


def test_the_folder_says_what_is_in_it(made, capsys):
    folder = made / "light"
    assert sorted(path.name for path in folder.iterdir()) == sorted(onnx_export.files_of("both"))
    about = json.loads((folder / "config.json").read_text())
    assert about["opset"] == as_onnx.OPSET == onnx.load(folder / "encoder_model.onnx").opset_import[0].version
    for name in onnx_export.graph_names("fp32"):
        onnx.checker.check_model(onnx.load(folder / name))
    card = (folder / "README.md").read_text()
    assert "library_name: onnx" in card and "decoder_model_merged.onnx" in card
    # Other programs load neither folder for the other.
    with pytest.raises(ValueError, match="type 'nanocaption_onnx', not one of nanoCaption"):
        exported.read(folder)


def test_what_is_already_there_is_refused_or_replaced_whole(made, tmp_path, monkeypatch, capsys):
    place = Path(shutil.copytree(made / "light", tmp_path / "light"))
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    # An export that does not give the same captions leaves everything as it was.
    monkeypatch.setitem(onnx_export._MOST, "fp32", 0.0)
    with pytest.raises(ValueError, match=r"onnxruntime's logits with fp32 .* Nothing was written"):
        export.main([str(made / "last.safetensors"), str(place), "--format", "onnx"])
    assert before == {path.name: path.read_bytes() for path in place.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["light"]
    monkeypatch.setattr(as_onnx, "_MOST_BYTES", 10)
    with pytest.raises(ValueError, match="The encoder has 0.0 GB of weights, and a file of ONNX holds 2 GB"):
        export.main([str(made / "last.safetensors"), str(place), "--format", "onnx"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files and is no export"):
        export.main([str(made / "last.safetensors"), str(tmp_path / "mine"), "--format", "onnx"])
    with pytest.raises(SystemExit, match="--precision int8 belongs to --format onnx"):
        export.main([str(made / "last.safetensors"), str(tmp_path / "new"), "--precision", "int8"])


@pytest.mark.long
def test_an_export_of_one_precision_takes_the_place_of_one_of_both(made, tmp_path, photos, light):
    place = Path(shutil.copytree(made / "light", tmp_path / "light"))
    export.main([str(made / "last.safetensors"), str(place), "--format", "onnx", "--precision", "int8"])
    assert sorted(path.name for path in place.iterdir()) == sorted(onnx_export.files_of("int8"))
    assert nanocaption.load(place).precision == "int8"
    export.main([str(made / "last.safetensors"), str(tmp_path / "own")])
    export.main([str(tmp_path / "own"), str(place), "--format", "onnx"])  # from an export
    assert sorted(path.name for path in place.iterdir()) == sorted(onnx_export.files_of("fp32"))
    assert nanocaption.load(place).caption(photos) == light.caption(photos)


# --- Folders by strangers ---


def altered(made: Path, place: Path, change) -> Path:
    """A copy of the export, changed, with the digests of what is in it: as its maker would have written it."""
    folder = Path(shutil.copytree(made / "light", place / "light"))
    about = json.loads((folder / "config.json").read_text())
    change(folder, about)
    for name in about.get("sha256", {}):
        if (folder / name).is_file():
            about["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def sized(name: str, value: object):
    return lambda folder, about: about["sizes"].__setitem__(name, value)


def without(name: str):
    return lambda folder, about: (folder / name).unlink()


def foreign_tokenizer(folder: Path, about: dict) -> None:
    text = json.loads((folder / "tokenizer.json").read_text())
    text["added_tokens"].append({**text["added_tokens"][0], "id": 9999, "content": "<more>"})
    (folder / "tokenizer.json").write_text(json.dumps(text))


def foreign_decoder(folder: Path, about: dict) -> None:
    shutil.copy(folder / "encoder_model.onnx", folder / "decoder_model_merged.onnx")


def elsewhere(folder: Path, about: dict) -> None:
    """A graph whose weights lie in a file outside of the folder."""
    secret = folder.parent / "secret"
    secret.write_bytes(b"\0" * 4096)
    graph = onnx.load(folder / "encoder_model.onnx")
    tensor = next(one for one in graph.graph.initializer if len(one.raw_data) > 100)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0")):
        tensor.external_data.add(key=key, value=value)
    (folder / "encoder_model.onnx").write_bytes(graph.SerializeToString())


def broken_reshape(folder: Path, about: dict) -> None:
    """A graph that onnxruntime takes, and that fails when it runs."""
    graph = onnx.load(folder / "encoder_model.onnx")
    (shape, *_) = [node.input[1] for node in graph.graph.node if node.op_type == "Reshape"]
    given = next(one for one in graph.graph.initializer if one.name == shape)
    given.CopyFrom(onnx.numpy_helper.from_array(np.array([7, 11, 13], np.int64), shape))
    del graph.graph.value_info[:]
    (folder / "encoder_model.onnx").write_bytes(graph.SerializeToString())


def test_a_graph_that_fails_when_it_runs_is_one_line(made, tmp_path, photos):
    folder = altered(made, tmp_path, broken_reshape)
    with pytest.raises(ValueError, match="its graph fails|cannot be run by onnxruntime") as caught:
        nanocaption.load(folder).caption(photos[0])
    assert "\n" not in str(caught.value)


def own_operator(folder: Path, about: dict) -> None:
    graph = onnx.load(folder / "encoder_model.onnx")
    graph.graph.node.append(helper.make_node("Run", ["pixel_values"], ["more"], domain="evil"))
    graph.opset_import.append(helper.make_opsetid("evil", 1))
    (folder / "encoder_model.onnx").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize("change, told", [
    (lambda f, about: about.update(format_version=2), "by nanoCaption .* in version '2' of the ONNX format"),
    (sized("layers", 10**9), "layers = 1000000000: must be a whole number from 1 to 200"),
    (sized("layers", 1), "which nothing here gives or takes"),
    (sized("layers", 3), "does not fit its config.json: past_key_values.2|does not fit its config.json: present.2"),
    (sized("max_seq_len", 10**12), "max_seq_len = 1000000000000: must be"),
    (sized("vocab_size", 20_000), "its tokenizer has 3.. tokens, its model 20000"),
    (sized("width", "64"), "width = 64: must be a whole number"),
    (sized("grid", 900), "grid = 900: has more places than there are patches"),
    (lambda f, about: about["image_spec"].update(size=10**9), "a side of image_spec = 1000000000: must be"),
    (lambda f, about: about["image_spec"].update(size=64), "does not fit its config.json: pixel_values is"),
    (lambda f, about: about["image_spec"].update(std=[0, 1, 1]), "is not followed"),
    (lambda f, about: about["settings"].update(BEAM_SIZE=10**9), "BEAM_SIZE = 1000000000: must be a whole number"),
    (lambda f, about: about["settings"].update(MIN_LENGTH=1.5), "MIN_LENGTH = 1.5: must be a whole number from 0"),
    (lambda f, about: about["settings"].update(LENGTH_PENALTY="a"), "LENGTH_PENALTY = a: must be a number from 0"),
    (lambda f, about: about.pop("sizes"), "lacks what belongs there"),
    (lambda f, about: about.update(sha256={}), "names no pair of an encoder and a decoder"),
    (without("decoder_model_merged.onnx"), "is not whole: it has no decoder_model_merged.onnx"),
    (without("tokenizer.json"), "is not whole: it has no tokenizer.json"),
    (lambda f, about: (f / "encoder_model.onnx").write_bytes(b"\x08\x07damaged"), "cannot be run by onnxruntime"),
    (lambda f, about: (f / "tokenizer.json").write_bytes(b"\xff{"), "tokenizer of .* cannot be read"),
    (foreign_tokenizer, "its tokenizer has .* tokens, its model|cannot be read: its vocabulary"),
    (foreign_decoder, "does not fit its config.json: input_ids is None"),
    (elsewhere, "cannot be run by onnxruntime"),
    (own_operator, "cannot be run by onnxruntime"),
], ids=range(24))  # fmt: skip
def test_a_strangers_folder_is_one_line(made, tmp_path, change, told):
    folder = altered(made, tmp_path, change)
    with pytest.raises(ValueError, match=told) as caught:
        nanocaption.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_damaged_or_oversized_file_is_seen_before_it_is_used(made, tmp_path, light, photos):
    folder = altered(made, tmp_path, lambda *_: None)
    assert nanocaption.load(folder).caption(photos[0]) == light.caption(photos[0])  # the control of all above
    with (folder / "decoder_model_merged.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\1\2\3")
    with pytest.raises(ValueError, match="decoder_model_merged.onnx is damaged, or not the file of its config.json"):
        nanocaption.load(folder)
    (folder / "decoder_model_merged.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is only a pointer to the file: run `git lfs pull`"):
        nanocaption.load(folder)
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(200_000_000)  # without any of them on the disk
    with pytest.raises(ValueError, match="tokenizer.json has 200 MB, and 100 MB are read at most"):
        nanocaption.load(folder)
    for text in ("{", "[]", "[" * 100_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError) as caught:
            nanocaption.load(folder)
        assert "\n" not in str(caught.value)


def test_logits_of_the_graphs_are_near_and_a_change_is_seen(ours, light):
    pixels = drawn_pictures(ours, 2)
    assert onnx_export._logits_apart(ours, light, pixels, [[5, 6, 7], [8]]) < 1e-4
    before = ours.memory_norm.weight.data.clone()
    try:
        ours.memory_norm.weight.data[0] += 0.3
        assert onnx_export._logits_apart(ours, light, pixels, [[5, 6, 7], [8]]) > 1e-3
    finally:
        ours.memory_norm.weight.data.copy_(before)
    assert torch.is_grad_enabled()


# --- The Hub ---


@pytest.mark.parametrize("precision", [None, "int8"])
def test_pushed_and_loaded_from_the_hub_by_its_id(made, light, photos, tmp_path, monkeypatch, capsys, precision):
    with serve() as server:
        point_to(server.url, monkeypatch, tmp_path)
        if precision is None:
            light.push_to_hub("someone/light", commit_message="first")
        else:
            upload.main([str(made / "light"), "someone/light"])
        ((_, files),) = server.repositories["someone/light"]["commits"]
        assert set(files) == {path.name for path in (made / "light").iterdir()}
        model = nanocaption.load("someone/light", **({"dtype": precision} if precision else {}))
        assert isinstance(model, OnnxCaptioner) and model.precision == (precision or "fp32")
        there = {path.name for path in model.export.folder.glob("*.onnx")}
        assert there == set(onnx_folder.graph_names(model.precision))  # the others are not loaded
        own = nanocaption.load(made / "light", **({"dtype": precision} if precision else {}))
        assert model.caption(photos[:2]) == own.caption(photos[:2])
        with pytest.raises(ValueError, match="has no 'encoder_model"):
            model.push_to_hub("someone/other")
        if precision is None:
            capsys.readouterr()
            for name in (str(made / "light"), "someone/light"):
                assert run_command(caption.main, [str(photos[0]), "--checkpoint", name]) == 0
            here, there = capsys.readouterr().out.splitlines()
            assert here == there
        assert "/resolve/" in " ".join(server.requests)
    (tmp_path / "empty").mkdir()
    assert run_command(upload.main, [str(tmp_path / "empty"), "someone/light"]) == 1


# --- The page (in a browser: test_web_page.py) ---


@pytest.fixture
def quick_page(made, monkeypatch) -> list[str]:
    """The arguments of an export of a page that takes the graphs of `made` and no real onnxruntime-web."""
    runtime = {web_runtime.BUNDLE: b"export const version = 0;", web_runtime.WASM: b"\0asm"}
    monkeypatch.setattr(web_runtime, "find_runtime", lambda given: runtime)

    def graphs_of_before(model: ImageToTextModel, folder: Path) -> None:
        for name in onnx_folder.graph_names("fp32"):
            shutil.copy(made / "light" / name, folder)

    def quantized_before(folder: Path) -> None:
        for name in onnx_folder.graph_names("int8"):
            shutil.copy(made / "light" / name, folder)

    monkeypatch.setattr(onnx_export, "write_graphs", graphs_of_before)
    monkeypatch.setattr(onnx_export, "quantize", quantized_before)
    return [str(made / "last.safetensors"), "--format", "web"]


def test_a_page_is_an_onnx_export_with_files_that_ask_nobody(made, quick_page, photos, tmp_path, capsys):
    page = tmp_path / "a <page> & \"more\""
    export.main([*quick_page, str(page)])
    assert "a page of " in capsys.readouterr().out
    own = nanocaption.load(made / "light", dtype="int8")
    assert nanocaption.load(page).caption(photos[:3]) == own.caption(photos[:3])
    about = json.loads((page / "files.js").read_text().removeprefix("self.NANOCAPTION = ").removesuffix(";\n"))
    names = {path.name for path in page.iterdir()}
    assert about["graphs"] == list(onnx_folder.graph_names("int8")) and set(about["files"]) <= names
    for name, told in about["files"].items():
        data = (page / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (told["bytes"], told["sha256"])
    assert names - set(about["files"]) == {
        "files.js", "service-worker.js", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
    }  # fmt: skip
    assert set(onnx_folder.files_in(page)) == names
    # Every file that the page names is one of its own, and no address of another host stands in it.
    kinds = (".html", ".js", ".css", ".webmanifest")
    texts = {name: (page / name).read_text() for name in names if name.endswith(kinds)}
    by_html = re.findall(r'(?:src|href)="([^"]+)"', texts["index.html"])
    by_code = r'(?:from |import |Worker\(|register\(|importScripts\()"(?:\./)?([^"]+)"'
    named = {*by_html, *re.findall(by_code, "".join(texts.values()))}
    assert len(named) > 12 and named <= names
    assert not re.findall(r"https?://|//[a-z]+\.", "".join(texts.values()).replace("http://www.w3.org/2000/svg", ""))
    assert "<h1>a &lt;page&gt; &amp; &quot;more&quot;</h1>" in texts["index.html"]
    assert 'lang="en"></textarea' in texts["index.html"]
    assert json.loads(texts["manifest.webmanifest"])["name"] == f"{page.name}: captions"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', texts["index.html"])[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe-inline" not in policy and "*" not in policy
    inline = re.findall(r"<script(?![^>]*src=)|<style|\son[a-z]+=|style=", texts["index.html"])
    assert inline == []


def test_a_page_takes_the_place_of_its_own_kind_alone(made, quick_page, tmp_path, monkeypatch):
    page = tmp_path / "page"
    export.main([*quick_page, str(page)])
    export.main([*quick_page, str(page), "--precision", "fp32"])
    assert nanocaption.load(page).precision == "fp32"
    assert not [name for name in onnx_folder.graph_names("int8") if (page / name).exists()]
    with pytest.raises(ValueError, match="is no export of nanoCaption in this format"):
        export.main([*quick_page, str(made / "light")])
    with pytest.raises(ValueError, match="is no export of nanoCaption in this format"):
        export.main([*quick_page[:1], str(page), "--format", "onnx"])
    other = ["--format", "onnx", "--onnxruntime-web", "a"]
    for flags, told in ((["--precision", "both"], "a page has one model"), (other, "belongs to --format web")):
        with pytest.raises(SystemExit, match=told):
            export.main([*quick_page, str(tmp_path / "new"), *flags])
    assert not (tmp_path / "new").exists()


def test_evaluation_and_other_exports_say_what_an_onnx_folder_is_for(made, tmp_path):
    for taken in (lambda: find_checkpoint(str(made / "light"), ""),
                  lambda: export.main([str(made / "light"), str(tmp_path / "new")])):  # fmt: skip
        with pytest.raises(SystemExit, match="is an ONNX export, which only `nanocaption caption`"):
            taken()
