"""Bytes of anybody for one reader after another: valid input, damaged at random by a seed, within memory and time.

`python tests/fuzz.py READER SECONDS SEED` runs one for longer, and says what it found. Allowed are an answer, and
ValueError or SystemExit with one line. An input is made from its seed and number; none is kept.
"""

import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

MOST_BYTES = 3 * 2**29  # above what the process maps before; a picture alone may take 0.96 GB of it
MOST_SECONDS = 10.0  # of the processor, for an input of some kB
ODD = (None, True, -1, 0, 2**31, 2**63, 1e308, -0.5, "", "x", "../x", "\x1b[31m", [], {}, [[]], {"a": []}, [1],
       "\ud800")  # fmt: skip


class Reader(NamedTuple):
    """A reader of outside bytes: files by name, of which one is damaged at a time, and what reads their folder."""

    files: Mapping[str, bytes]
    read: Callable[[Path], object]


class Found(NamedTuple):
    inputs: int
    refused: int  # with one line, as it should be
    faults: list[str]


def damaged(data: bytes, name: str, rng: random.Random) -> bytes:
    """`data`, changed in one to four places; of JSON its values, as often as its bytes."""
    if name.endswith(".json") and rng.random() < 0.6:
        content = json.loads(data)
        for _ in range(rng.randint(1, 3)):
            content = _with_odd_value(content, rng)
        return json.dumps(content).encode()
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 16, 100))
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + length] = rng.randbytes(min(length, len(changed) - place))
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = rng.choice((b"\xff" * 8, b"\x00" * 8, *(bytes([sign]) for sign in b'",\t\n[{\r|')))
        elif kind == 3:
            changed[place:place] = changed[place : place + length] * rng.choice((1, 2, 50))
        elif kind == 4 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        else:
            del changed[place:]
        changed = changed[: 4 * len(data) + 1000]
    return bytes(changed)


def _with_odd_value(content: Any, rng: random.Random) -> Any:
    if isinstance(content, dict) and content and rng.random() < 0.95:
        key = rng.choice(list(content))
        if rng.random() < 0.1:
            return {name: value for name, value in content.items() if name != key}
        return content | {key: _with_odd_value(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.95:
        place = rng.randrange(len(content))
        return [*content[:place], _with_odd_value(content[place], rng), *content[place + rng.randrange(2) :]]
    return rng.choice(ODD)


def _damaged_but_for_its_footer(data: bytes, name: str, rng: random.Random) -> bytes:
    """The footer of parquet stays as it is: some damaged ones end the process inside pyarrow (docs/trust.md)."""
    if not name.endswith(".parquet"):
        return damaged(data, name, rng)
    kept = int.from_bytes(data[-8:-4], "little") + 8
    return damaged(data[:-kept], name, rng) + data[-kept:]


def fuzz(reader: Reader, seconds: float, seed: int) -> Found:
    """Damaged inputs for so long, in a process of its own whose memory and time are bounded."""
    ends = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the parent, whose threads may hold it now
            os.close(ends[0])
            with os.fdopen(ends[1], "w") as answer:
                json.dump(_in_bounds(reader, seconds, seed, answer), answer)
                answer.flush()
                os._exit(0)
        finally:
            os._exit(9)
    os.close(ends[1])
    with os.fdopen(ends[0]) as answer:
        text = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    last = text.splitlines()[-1] if text else ""
    if code:
        return Found(0, 0, [f"the process ended with {code} at input {last}"])
    return Found(*json.loads(last))


def _in_bounds(reader: Reader, seconds: float, seed: int, progress: Any) -> Found:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, _too_long)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    names = sorted(reader.files)
    inputs, refused, faults = 0, 0, []
    with tempfile.TemporaryDirectory() as place:
        valid = Path(place) / "valid"
        for name, data in reader.files.items():
            (valid / name).parent.mkdir(parents=True, exist_ok=True)
            (valid / name).write_bytes(data)
        _, fault = _outcome(reader, valid)  # which also imports what is imported late
        faults += [f"valid input: {fault}"] * bool(fault)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds and len(faults) < 20:
            rng = random.Random(f"{seed} {inputs}")
            if inputs % 20 == 0:
                progress.write(f"{inputs}\n")
                progress.flush()
            folder = Path(place) / "in"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            chosen = rng.choice(names)
            for name, data in reader.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(_damaged_but_for_its_footer(data, name, rng) if name == chosen else data)
            one_line, fault = _outcome(reader, folder)
            refused += one_line
            faults += [f"input {inputs}: {fault}"] * bool(fault)
            inputs += 1
    return Found(inputs, refused, faults)


def _outcome(reader: Reader, folder: Path) -> tuple[bool, str]:
    """(whether what is in the folder was refused, the fault if there was one)"""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 30 * MOST_SECONDS)  # what waits; a busy machine is slow
    try:
        reader.read(folder)
        return False, ""
    except (ValueError, SystemExit) as error:
        sound = "\n" not in str(error).strip() and str(error).strip() != ""
        return True, "" if sound else f"{type(error).__name__} of other than one line: {str(error)[:200]!r}"
    except BaseException as error:  # whatever else is a fault
        trace, at = error.__traceback__, ""
        while trace:
            code = trace.tb_frame.f_code
            at = f"{Path(code.co_filename).name}:{trace.tb_lineno}" if "nanocaption" in code.co_filename else at
            trace = trace.tb_next
        return False, f"{type(error).__name__} in {at}: {str(error)[:150]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {MOST_SECONDS:.0f} s")


# --- The readers, each with valid input ---


def picture(kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 20)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


ROWS = [(f"{place:02}.jpg", f"a dog number {place} runs, fast .") for place in range(24)]
COCO = {"images": [{"id": at, "file_name": name} for at, (name, _) in enumerate(ROWS)],
        "annotations": [{"id": at, "image_id": at, "caption": text} for at, (_, text) in enumerate(ROWS)]}  # fmt: skip
KARPATHY = {"images": [{"filename": name, "split": ("train", "val", "test")[at % 3], "sentences": [{"raw": text}],
                        "cocoid": at} for at, (name, text) in enumerate(ROWS)]}  # fmt: skip
STUDIO = [{"id": at, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"result": [
    {"from_name": "caption", "type": "textarea", "value": {"text": [text]}}]}]} for at, (name, text) in enumerate(ROWS)]
TALKS = [{"image": name, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}
         for name, text in ROWS]  # fmt: skip
TEXTS = {
    "captions.csv": "file_name,caption\n" + "".join(f'{name},"{text}"\n' for name, text in ROWS),
    "captions.tsv": "image\tcaption_0\tcaption_1\n" + "".join(f"{name}\t{text}\t['a', 'b']\n" for name, text in ROWS),
    "captions.jsonl": "".join(json.dumps({"file_name": name, "caption": text}) + "\n" for name, text in ROWS),
    "captions.txt": "image,caption\n" + "".join(f'{name},"{text}"\n' for name, text in ROWS),
    "x.token": "".join(f"{name}#0\t{text}\n" for name, text in ROWS),
    "results.csv": "image_name| comment_number| comment\n" + "".join(f"{name}| 0| {text}\n" for name, text in ROWS),
    "dataset_x.json": json.dumps(KARPATHY), "captions_train.json": json.dumps(COCO), "studio.json": json.dumps(STUDIO),
    "talks.json": json.dumps(TALKS), "map.json": json.dumps({name: [text, text] for name, text in ROWS}),
    "splits.json": json.dumps({"train": dict(ROWS[:20]), "val": dict(ROWS[20:])}),
    "flickr_annotations_1.csv": "raw,split,filename\n"
    + "".join(f'"[""{text}""]",train,{name}\n' for name, text in ROWS),
}  # fmt: skip


def caption_files() -> Reader:
    from nanocaption.prepare import caption_files, caption_json, caption_tables

    readers = {".csv": caption_tables.read_csv, ".tsv": caption_tables.read_csv, ".txt": caption_tables.read_csv,
               ".jsonl": caption_json.read_jsonl, ".json": caption_json.read_json, ".token": caption_files.read_token}
    own = {"results.csv": caption_files.read_results, "flickr_annotations_1.csv": caption_tables.read_annotations}

    def read(folder: Path) -> None:
        errors = []
        for path in sorted(folder.iterdir()):
            try:
                own.get(path.name, readers[path.suffix])(path)
            except ValueError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return Reader({name: text.encode() for name, text in TEXTS.items()}, read)


def layouts() -> Reader:
    from nanocaption.prepare import layouts

    def read(folder: Path) -> None:
        errors = []
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                try:
                    layouts.read_layout(path, 0)
                except ValueError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    files = {f"{name}_set/{name}": text.encode() for name, text in TEXTS.items()}
    beside = {f"beside/{name[:2]}.{end}": (text if end == "txt" else json.dumps({"caption": text})).encode()
              for name, text in ROWS[:12] for end in ("txt", "json")}  # fmt: skip
    return Reader(files | beside | {f"beside/{name}": b"x" for name, _ in ROWS[:12]}, read)


def parquet() -> Reader:
    import pyarrow
    from pyarrow import parquet

    from nanocaption.data import shards
    from nanocaption.prepare import packed

    buffer = io.BytesIO()
    table = pyarrow.table({
        "image": [{"bytes": picture(), "path": name} for name, _ in ROWS], "caption": [text for _, text in ROWS],
        "split": ["train", "val", "test"] * 8,
    })  # fmt: skip
    parquet.write_table(table, buffer, compression="zstd", row_group_size=10)

    def read(folder: Path) -> None:
        source = packed.find_parquet(folder)
        assert source is not None
        source.read()
        shards.cell_lengths(str(folder / "a.parquet"), 0, "image.bytes")
        shards._row_groups.cache_clear()

    return Reader({"a.parquet": buffer.getvalue()}, read)


def archive_files() -> Reader:
    from nanocaption.prepare import archives, tars

    members = {name: picture() for name, _ in ROWS[:6]} | {f"{name[:2]}.txt": text.encode() for name, text in ROWS[:6]}
    packed: dict[str, io.BytesIO] = {name: io.BytesIO() for name in ("a.tar", "b.tar.gz", "c.zip")}
    for name in ("a.tar", "b.tar.gz"):
        with tarfile.open(fileobj=packed[name], mode="w:gz" if name.endswith("gz") else "w") as made:
            for member, data in members.items():
                info = tarfile.TarInfo(member if name == "a.tar" else f"{'folder/' * 20}{member}")
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(packed["c.zip"], "w", zipfile.ZIP_DEFLATED) as made_zip:
        for member, data in members.items():
            made_zip.writestr(member, data)

    def read(folder: Path) -> None:
        errors = []
        for path in sorted(folder.iterdir()):
            try:
                found = archives.checked(path, lambda name: True)
                archives.unpack(path, found, (folder.parent / "out").joinpath)
                if source := tars.find_webdataset(path):
                    source.read()
            except ValueError as error:
                errors.append(error)
        shutil.rmtree(folder.parent / "out", ignore_errors=True)
        if errors:
            raise errors[0]

    return Reader({name: buffer.getvalue() for name, buffer in packed.items()}, read)


def pictures() -> Reader:
    from nanocaption.data.pictures import read_picture

    def read(folder: Path) -> None:
        errors = []
        for path in sorted(folder.iterdir()):
            try:
                read_picture(path)
            except ValueError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return Reader({f"a.{kind.lower()}": picture(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM")}, read)


def predictions() -> Reader:
    from nanocaption.metrics import files
    from nanocaption.score import predictions

    def read(folder: Path) -> None:
        references = files.read_references(folder / "references.json")
        names = [one.file_name for one in references]
        for name in ("a.json", "b.json"):
            predictions.match_predictions(folder / name, names, [one.image_id for one in references])

    entries = [{"image_id": at, "caption": text} for at, (_, text) in enumerate(ROWS)]
    return Reader({"references.json": json.dumps(COCO).encode(), "a.json": json.dumps(entries).encode(),
                   "b.json": json.dumps(dict(ROWS)).encode()}, read)  # fmt: skip


def tokenizer_text() -> str:
    from nanocaption.data.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as place:
        return train_tokenizer([text for _, text in ROWS], place, 270).to_str()


def tokenizers() -> Reader:
    from nanocaption.data.tokenizer import encode, text_of, tokenizer_from_json

    def read(folder: Path) -> None:
        text = (folder / "tokenizer.json").read_bytes().decode()
        tokenizer = tokenizer_from_json(text)
        text_of(tokenizer, encode(tokenizer, "a dog runs", 20))

    return Reader({"tokenizer.json": tokenizer_text().encode()}, read)


SMALL = ["--vit-embed-dim", "8", "--vit-heads", "2", "--vit-layers", "1", "--image-size", "16", "--vit-stem", "patch",
         "--decoder-embed-dim", "8", "--decoder-heads", "2", "--decoder-layers", "1", "--decoder-ff-dim", "8",
         "--max-seq-len", "8"]  # fmt: skip


def small_state() -> dict[str, Any]:
    from nanocaption.base.settings import load_settings
    from nanocaption.data.tokenizer import tokenizer_from_json
    from nanocaption.model.captioner import build_model

    text = tokenizer_text()
    config = load_settings(SMALL).values
    model = build_model(config, tokenizer_from_json(text).get_vocab_size())
    return {"config": dict(config), "config_constants": {}, "tokenizer": text, "model_arguments": {}, "epoch": 1,
            "step": 2, "model_state_dict": dict(model.state_dict()), "written_by": "nanoCaption", "best_cider": 1.0,
            "optimizer_state_dict": {"state": {}, "param_groups": []}}  # fmt: skip


def checkpoints() -> Reader:
    """Damaged files, and sound ones that say odd things: their description is damaged, and signed anew."""
    import torch

    from nanocaption.base.tensors import write_tensors
    from nanocaption.model.captioner import assemble
    from nanocaption.runs import checkpoint

    state = small_state()
    weights = state.pop("model_state_dict")
    with tempfile.TemporaryDirectory() as place:
        checkpoint.save(Path(place) / "a.safetensors", state | {"model_state_dict": weights})
        data = (Path(place) / "a.safetensors").read_bytes()
    del state["optimizer_state_dict"]
    state["optimizer_param_groups"] = [{"param_names": ["decoder.norm.weight"], "without_state": [], "lr": 0.1}]

    def read(folder: Path) -> None:
        checkpoint.load(folder / "a.safetensors")
        about = json.loads((folder / "about.json").read_bytes())
        if not isinstance(about, dict):
            raise ValueError("no state")
        path, tensors = folder.parent / "b.safetensors", {f"model/{name}": tensor for name, tensor in weights.items()}
        digest = checkpoint._digest(tensors, checkpoint._canonical(about))
        signed = checkpoint._canonical({"format_version": 2, "digest": digest} | about)
        write_tensors(path, tensors, {"nanocaption": signed})
        with torch.no_grad():
            model = assemble(checkpoint.load(path))
            model(torch.zeros(1, 3, 16, 16), torch.tensor([[1, 5, 6]]))

    return Reader({"a.safetensors": data, "about.json": json.dumps(state).encode()}, read)


def exports() -> Reader:
    from nanocaption.model import exported
    from nanocaption.model.captioner import assemble

    with tempfile.TemporaryDirectory() as place:
        exported.write(Path(place) / "e", small_state(), "# a card\n")  # type: ignore[arg-type]
        files = {path.name: path.read_bytes() for path in (Path(place) / "e").iterdir()}

    def read(folder: Path) -> None:
        model = assemble(exported.read(folder))
        model.caption(Image.new("RGB", (20, 20)))

    return Reader(files, read)


def onnx_folders() -> Reader:
    from nanocaption.model import onnx_folder

    about = {
        "model_type": "nanocaption_onnx", "format_version": 1, "library_version": "0",
        "sizes": {"layers": 1, "heads": 2, "width": 8, "vocab_size": 300, "max_seq_len": 9, "patches": 4, "grid": 2},
        "settings": {"LENGTH_PENALTY": 1.0, "BEAM_SIZE": 3, "MIN_LENGTH": 0, "NO_REPEAT_NGRAM": 0},
        "image_spec": {"size": 16, "resize": 16, "crop": False, "mean": [0.5] * 3, "std": [0.5] * 3,
                       "interpolation": "bilinear"},
        "sha256": {"encoder_model.onnx": "0", "decoder_model_merged.onnx": "0",
                   "tokenizer.json": hashlib.sha256(b"{}").hexdigest()},
    }  # fmt: skip

    def read(folder: Path) -> None:
        found = onnx_folder.read_onnx_export(folder)
        onnx_folder.checked_file(found, "tokenizer.json")

    return Reader({"config.json": json.dumps(about).encode(), "tokenizer.json": b"{}"}, read)


def preprocessors() -> Reader:
    from nanocaption.model import preprocessor

    keys = preprocessor.preprocessor({"size": 16, "resize": 20, "crop": True, "mean": [0.5] * 3, "std": [0.5] * 3,
                                      "interpolation": "bicubic"})  # fmt: skip
    del keys["image_processor_type"]

    def read(folder: Path) -> None:
        found = json.loads((folder / "preprocessor_config.json").read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no keys")
        preprocessor.spec_of_keys(found)

    return Reader({"preprocessor_config.json": json.dumps(keys).encode()}, read)


def shard_indexes() -> Reader:
    from nanocaption.data import shard_index
    from nanocaption.data.shards import Packed

    with tempfile.TemporaryDirectory() as place:
        shard = {"path": "a.tar", "bytes": 1, "time": 2, "etag": "", "column": ""}
        found = [Packed(f"{at}.jpg", "a.tar", 512 * at, 0, 100, at, "") for at in range(20)]
        shard_index.write_index(Path(place), [shard], found, len(found))  # type: ignore[list-item]
        files = {f"stream/{path.name}": path.read_bytes() for path in (Path(place) / "stream").iterdir()}

    def read(folder: Path) -> None:
        shard_index.check_index(folder, 20)
        index = shard_index.Index(folder)
        for at in range(20):
            index.picture(at)

    return Reader(files, read)


READERS: dict[str, Callable[[], Reader]] = {
    made.__name__: made
    for made in (caption_files, layouts, parquet, archive_files, pictures, predictions, tokenizers, checkpoints,
                 exports, onnx_folders, preprocessors, shard_indexes)
}  # fmt: skip

if __name__ == "__main__":
    began = time.time()
    result = fuzz(READERS[sys.argv[1]](), float(sys.argv[2]), int(sys.argv[3]))
    print(f"{sys.argv[1]}: {result.inputs:,} inputs, {result.refused:,} refused in one line, {len(result.faults)} "
          f"faults ({time.time() - began:.0f} s)", *dict.fromkeys(result.faults), sep="\n  ")  # fmt: skip
