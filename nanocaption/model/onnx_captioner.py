"""A model of an ONNX export: captions of pictures with onnxruntime and numpy, without torch.

N pictures, K captions of each at once, L tokens so far, P patches, H heads, D width of the decoder, V vocabulary.
"""

import itertools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Unpack, overload

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from nanocaption.base import hub
from nanocaption.data import picture_forms
from nanocaption.data.tokenizer import END, START, tokenizer_from_json
from nanocaption.model import decode_numpy, onnx_folder
from nanocaption.model.caption_types import CaptionText, with_text
from nanocaption.model.ending_tables import tables_of
from nanocaption.model.onnx_folder import OnnxExport, memory_names, token_names
from nanocaption.model.options import Names, Options, asked, search_options

_PICTURES = 32  # captioned at once
Shape = tuple[int | None, ...]  # None: any size
_ENCODED = 8  # at once of these: more take no less time each, and more memory


class OnnxCaptioner:
    """What `nanocaption.load` gives for the folder of an ONNX export: it captions as ImageToTextModel does.

    precision: "fp32" or "int8", of which the folder must have a pair of graphs; None: the more exact one there is.
    Raises ValueError with one line where the folder is not whole, not ours or of another version.
    """

    tokenizer: Tokenizer
    export: OnnxExport
    precision: str

    def __init__(self, folder: str | Path, precision: str | None = None):
        export = onnx_folder.read_onnx_export(Path(folder))
        precision = precision or export.precisions[0]
        if precision not in export.precisions:
            raise ValueError(
                f"{folder} has no {precision} graphs, only {', '.join(export.precisions)}: export it with --precision "
                f"{precision}, or both."
            )
        self.export, self.precision = export, precision
        text = onnx_folder.checked_file(export, hub.TOKENIZER)
        self.tokenizer = tokenizer_from_json(text.decode(errors="replace"), str(folder))
        if (words := self.tokenizer.get_vocab_size()) != export.vocab_size:
            raise ValueError(f"{folder}: its tokenizer has {words} tokens, its model {export.vocab_size}.")
        encoder, decoder = onnx_folder.graph_names(precision)
        self._encoder, self._decoder = _session(export, encoder), _session(export, decoder)
        self._check_graphs(encoder, decoder)

    def _check_graphs(self, encoder: str, decoder: str) -> None:
        """ValueError unless the graphs take and give what config.json says, and nothing else."""
        export, side = self.export, self.export.image_spec["size"]
        heads, width, patches = export.heads, export.width // export.heads, export.patches
        memory: dict[str, Shape] = {}
        tokens: dict[str, Shape] = {}
        for layer in range(export.layers):
            memory[f"{layer}.encoder.key"] = (None, heads, width, patches)
            memory[f"{layer}.encoder.value"] = (None, heads, patches, width)
            tokens |= {f"{layer}.decoder.{part}": (None, None, heads, None, width) for part in ("key", "value")}
        past = {f"past_key_values.{name}": shape for name, shape in (memory | tokens).items()}
        inputs: dict[str, Shape] = {"input_ids": (None, None), "position_ids": (1,), **past}
        own: dict[str, Shape] = {"logits": (None, None, export.vocab_size), "attention": (None, None, patches)}
        of_memory = {f"present.{name}": shape for name, shape in memory.items()}
        of_tokens = {f"present.{name}": shape for name, shape in tokens.items()}
        for name, found, expected in (
            (encoder, self._encoder.get_inputs(), {"pixel_values": (None, 3, side, side)}),
            (encoder, self._encoder.get_outputs(), of_memory),
            (decoder, self._decoder.get_inputs(), inputs),
            (decoder, self._decoder.get_outputs(), own | of_tokens),
        ):
            _check(export.folder / name, {one.name: list(one.shape) for one in found}, expected)

    @overload
    def caption(self, picture: picture_forms.OnePicture, **options: Unpack[Names]) -> str: ...

    @overload
    def caption(self, picture: Iterable[picture_forms.OnePicture], **options: Unpack[Names]) -> list[str]: ...

    def caption(
        self, picture: picture_forms.OnePicture | Iterable[picture_forms.OnePicture], **options: Unpack[Names]
    ) -> str | list[str]:
        """The best caption of a picture, or the best of each of several, in order. See ImageToTextModel.caption."""
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("caption gives the best caption of a picture: captions([picture], ...) gives several.")
        if picture_forms.is_one(picture):
            return self.captions([picture], **options)[0][0].text  # type: ignore[list-item]  # one picture, by is_one
        return [found[0].text for found in self.captions(picture, **options)]  # type: ignore[arg-type]

    def captions(
        self, pictures: Iterable[picture_forms.OnePicture], *, attention: bool = False, **options: Unpack[Names]
    ) -> list[list[CaptionText[np.ndarray]]]:
        """Captions of several pictures; arguments, result and errors are those of ImageToTextModel.captions.

        Of random captions without a seed the system draws the seeds, not torch's generator.
        """
        how = asked(options, search_options(self.export.settings))
        fitted = picture_forms.fitted_forms(pictures, self.export.image_spec)
        results: list[list[CaptionText[np.ndarray]]] = []
        while chunk := list(itertools.islice(fitted, _PICTURES)):
            seeds = None if how.seed is None else [how.seed] * len(chunk)
            results += self.decode(np.stack(chunk), how.options, seeds, how.captions, attention)
        if not results:
            raise ValueError("There is no picture to caption: the list is empty.")
        return results

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, commit_message: str = "Upload a nanoCaption model"
    ) -> str:
        """ImageToTextModel.push_to_hub: this folder, as it is, to the model repository `repo_id` of the Hub."""
        names = onnx_folder.files_in(self.export.folder)
        if problem := hub.access_problem(repo_id):
            raise ValueError(f"Nothing can be uploaded to {repo_id}: {problem}.")
        return hub.push(self.export.folder, repo_id, private, commit_message, names)

    def decode(
        self, pixels: np.ndarray, options: Options, seeds: Sequence[int] | None = None, most: int | None = None,
        attention: bool = False,
    ) -> list[list[CaptionText[np.ndarray]]]:  # fmt: skip
        """Captions of N pictures, uint8 (N, S, S, 3), as decode_pictures gives them; at most `most` of each."""
        memory = self.encode(pixels)
        endings = tables_of(self.tokenizer) if options.no_bad_endings else None
        limits = decode_numpy.Limits(START, END, self.export.max_seq_len - 1, endings)
        results = decode_numpy.decode(self.start_decoding(memory), len(pixels), options, limits, seeds)
        found = [[with_text(self.tokenizer, caption) for caption in captions[:most]] for captions in results]
        if any(math.isnan(captions[0].log_prob) for captions in found):
            warnings.warn("the model gives no numbers (NaN) for some pictures, whose captions are empty", stacklevel=3)
        return self._with_attention(memory, found) if attention else found

    def encode(self, pixels: np.ndarray) -> list[np.ndarray]:
        """uint8 (N, S, S, 3) -> per layer of the decoder the keys (N, H, D/H, P) and values (N, H, P, D/H)."""
        spec = self.export.image_spec
        mean, std = (np.array(spec[name], np.float32).reshape(3, 1, 1) for name in ("mean", "std"))
        parts: list[Sequence[np.ndarray]] = []
        for start in range(0, len(pixels), _ENCODED):
            part = pixels[start : start + _ENCODED].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
            parts.append(self._run(self._encoder, {"pixel_values": np.ascontiguousarray((part - mean) / std)}))
        return list(parts[0]) if len(parts) == 1 else [np.concatenate(part) for part in zip(*parts, strict=True)]

    def start_decoding(self, memory: list[np.ndarray], seen: list[np.ndarray] | None = None) -> decode_numpy.Step:
        """ImageToTextModel.start_decoding over what `encode` gave. seen: gets the attention of each step, (N, K, P)."""
        layers, heads, width = self.export.layers, self.export.heads, self.export.width // self.export.heads
        names = (memory_names("past_key_values", layers), token_names("past_key_values", layers))
        length, past = 0, [np.zeros((len(memory[0]), 1, heads, 0, width), np.float32)] * (2 * layers)

        def step(tokens: np.ndarray, parents: np.ndarray | None = None) -> np.ndarray:
            nonlocal memory, past, length
            beams = past[0].shape[1] if length else len(tokens) // len(memory[0])
            if parents is not None:
                if len(parents) < len(memory[0]) * beams:
                    kept = parents[::beams] // beams
                    memory = [part[kept] for part in memory]
                past = [part.reshape(-1, *part.shape[2:])[parents].reshape(-1, beams, *part.shape[2:]) for part in past]
            elif not length:
                past = [part.repeat(beams, 1) for part in past]
            inputs = {"input_ids": tokens.reshape(-1, beams).astype(np.int64), "position_ids": np.array([length])}
            inputs |= dict(zip(names[0], memory, strict=True)) | dict(zip(names[1], past, strict=True))
            logits, looked, *past = self._run(self._decoder, inputs)
            length += 1
            if seen is not None:
                seen.append(looked)
            return logits.reshape(len(tokens), -1)

        return step

    def _run(self, graph: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs. ValueError, with one line, where the graph fails: only one that was not written here does."""
        try:
            return graph.run(None, inputs)
        except Exception as error:  # the library has a class of its own for each of its codes
            raise ValueError(f"{self.export.folder}: its graph fails: {' '.join(str(error).split())[:200]}") from error

    def _with_attention(
        self, memory: list[np.ndarray], found: list[list[CaptionText[np.ndarray]]]
    ) -> list[list[CaptionText[np.ndarray]]]:
        """The captions once more through the decoder, all at once, for what each token looked at when it was chosen."""
        most = max(map(len, found))
        longest = max(1, *(len(caption.ids) for captions in found for caption in captions), 1)
        tokens = np.full((len(found), most, longest), END)
        for image, captions in enumerate(found):
            for place, caption in enumerate(captions):
                inputs = [START, *caption.ids][: max(1, len(caption.ids))]
                tokens[image, place, : len(inputs)] = inputs
        seen: list[np.ndarray] = []
        step = self.start_decoding(memory, seen)
        for place in range(longest):
            step(tokens[:, :, place].ravel(), None)
        grid = self.export.grid
        maps = np.stack(seen, 2)[..., -grid * grid :].reshape(len(found), most, longest, grid, grid)
        return [[caption._replace(attention=maps[image, place, : len(caption.ids)].copy())
                 for place, caption in enumerate(captions)] for image, captions in enumerate(found)]  # fmt: skip


def load_onnx(folder: Path, device: str, dtype: str) -> OnnxCaptioner:
    """nanocaption.load of the folder of an ONNX export. ValueError for what such a model has not."""
    if device not in ("cpu", "auto"):
        raise ValueError(f"device = {device!r}: an ONNX export runs on the CPU here. Give 'cpu'.")
    if dtype.removeprefix("torch.") not in ("float32", "int8"):
        raise ValueError(f"dtype = {dtype!r}: an ONNX export is run as it was written. Leave it out, or give 'int8'.")
    return OnnxCaptioner(folder, "int8" if dtype == "int8" else None)


def _session(export: OnnxExport, name: str) -> onnxruntime.InferenceSession:
    """A graph, ready to run. From memory, so that it can point to no other file."""
    data = onnx_folder.checked_file(export, name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised as well
    options.intra_op_num_threads = threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights of 8 bits become float32 once, here, and nothing that meets them is rounded: see onnx_export.quantize.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a class of its own for each of its codes
        reason = " ".join(str(error).split())[:200]
        told = f"{export.folder / name} cannot be run by onnxruntime {onnxruntime.__version__}: {reason}"
        raise ValueError(told) from error


def threads() -> int:
    """OMP_NUM_THREADS, as torch has it, or the processors that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(path: Path, found: dict[str, list[int | str | None]], expected: Mapping[str, Shape]) -> None:
    for name, shape in expected.items():
        given = found.get(name)
        if given is None or len(given) != len(shape) or any(
            wanted is not None and size != wanted for size, wanted in zip(given, shape, strict=True)
        ):
            raise ValueError(f"{path} does not fit its config.json: {name} is {given}, must be {list(shape)}.")
    if more := sorted(found.keys() - expected.keys()):
        raise ValueError(f"{path} has {more[0][:60]!r}, which nothing here gives or takes.")
