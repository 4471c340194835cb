"""The captioner: an image encoder, and a Transformer decoder that attends to all patch features.

Shapes: N images, B captions (each belongs to one image), T tokens, R real tokens of the batch (padding left out),
P patches, E encoder width, D decoder width, H heads, V vocabulary, K captions per image decoded at once (beams).
"""

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Unpack, cast, overload

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanocaption.base import devices, hub, tensors, tower_names
from nanocaption.base.settings import ModelSettings
from nanocaption.base.tensors import State
from nanocaption.data.any_picture import ONE, AnyPicture
from nanocaption.data.packing import Places, find_places, unpack
from nanocaption.data.tokenizer import END, tokenizer_from_json
from nanocaption.data.transform import ImageSpec
from nanocaption.model import bounds, exported
from nanocaption.model.answers import answer_picture
from nanocaption.model.captions import CaptionText, caption_pictures
from nanocaption.model.decoder import Asked, Cache, Decoder, Prefix, begin_answers, follow, follow_answers
from nanocaption.model.encoder import PretrainedTower, Tower, VisionTransformer, make_encoder, nameless, pick_patches
from nanocaption.model.options import Names
from nanocaption.model.retrieval import ContrastiveHead

# How many patches a CPU encodes at a time without gradients, those of 16 images of 224 x 224: their activations stay in
# its cache and on pages it already has. 50 such images in a ViT-Tiny take 15-20 % less time so.
_CPU_PATCHES = 16 * 14**2
# Of so many captions decoded at once on a CPU, those that have ended are left out of the products once this share or
# less is open. Drawn ones stay in the batch until the others of their image have ended: a third of all rows.
_MANY_ROWS, _FEW_ENDED = 64, 0.9

_DRAWS = ("normal_", "trunc_normal_", "uniform_", "xavier_uniform_", "kaiming_uniform_")


class ImageToTextModel(nn.Module):
    """Images and the tokens so far -> logits of each next token.

    settings: sizes, and ENCODER_MODEL_NAME: None is a ViT from scratch of the VIT_* sizes. dropout: of the decoder.
    tower: `arguments` of a checkpoint, to rebuild a pretrained tower without loading it anew.
    Raises ValueError with one line where the encoder cannot be loaded.
    """

    encoder: VisionTransformer | PretrainedTower
    image_spec: ImageSpec
    mean: Tensor
    std: Tensor

    def __init__(self, settings: ModelSettings, vocab_size: int, dropout: float = 0.0, tower: Tower | None = None):
        super().__init__()
        self.encoder, self.image_spec = make_encoder(settings, tower)
        self.freeze_encoder = settings.FREEZE_ENCODER
        if self.freeze_encoder:
            self.encoder.requires_grad_(False)
        # Some towers (CLIP) give patch features without a final norm. Models of other programs have none here.
        parts = tower or {}
        self.memory_norm = nn.LayerNorm(self.encoder.width) if parts.get("memory_norm", True) else nn.Identity()
        self.memory_projection = nn.Linear(self.encoder.width, settings.DECODER_EMBED_DIM)
        foreign = (parts.get("decoder_activation", "gelu"), parts.get("never_chosen", []))
        self.decoder = Decoder(settings, vocab_size, dropout, *foreign)
        self.register_buffer("mean", torch.tensor(self.image_spec["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.image_spec["std"]).view(3, 1, 1), persistent=False)
        self._initialise()
        self.retrieval: ContrastiveHead | None = None
        if parts.get("contrastive"):
            self.add_contrastive_head()
        self.encode_in_parts = True  # on a CPU, without gradients
        # `assemble` sets them: a model that can caption files by itself.
        self.tokenizer: Tokenizer | None = None
        self.about: State | None = None  # the state that it was made from, without the tensors

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> "ImageToTextModel":
        """The model of an exported folder, or of the Hub by its id and a revision, in eval mode.

        A folder needs no network. device: "cpu", "cuda", "cuda:1", "mps" or "auto". dtype: of the weights, also by its
        name: float32, bfloat16 or float16; log-probabilities and scores are float32 anyway.
        Raises ValueError with one line where there is none, it is damaged, or the device or dtype is none.
        """
        place, kind = devices.named_device(device), devices.named_dtype(dtype)
        state = exported.read(name, revision)
        try:
            return assemble(state).to(place, kind)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write such a folder, of a model that from_pretrained gave; see exported.write for what is refused.

        The weights are written as float32, whatever they are here.
        """
        self._save(Path(folder), None)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, commit_message: str = "Upload a nanoCaption model"
    ) -> str:
        """Write such a folder to the model repository `repo_id` (user/name) of the Hub; returns its URL.

        private: how the repository is made where there is none yet. The token is HF_TOKEN's, or that of a login.
        Raises ValueError with one line.
        """
        with tempfile.TemporaryDirectory() as place:
            self._save(Path(place) / "model", repo_id)
            if problem := hub.access_problem(repo_id):
                raise ValueError(f"Nothing can be uploaded to {repo_id}: {problem}.")
            return hub.push(Path(place) / "model", repo_id, private, commit_message)

    def _save(self, folder: Path, repo_id: str | None) -> None:
        if self.about is None or "card" not in self.about:
            raise ValueError(f"This model has no card of its own: save what from_pretrained gave. {exported.HINT}")
        weights = {name: tensor.float() for name, tensor in self.state_dict().items()}
        card = self.about["card"] if repo_id is None else exported.renamed(self.about["card"], repo_id)
        exported.write(folder, {**self.about, "model_state_dict": weights}, card)

    @overload
    def caption(  # type: ignore[overload-overlap]  # a str is one picture, though also a list of texts
        self, picture: AnyPicture, **options: Unpack[Names]
    ) -> str: ...

    @overload
    def caption(self, picture: Iterable[AnyPicture], **options: Unpack[Names]) -> list[str]: ...

    def caption(self, picture: AnyPicture | Iterable[AnyPicture], **options: Unpack[Names]) -> str | list[str]:
        """The best caption of a picture, or the best of each of several, in order: a list, a generator.

        picture: a path, bytes, a binary file, a PIL image, a numpy array or a torch tensor; what of these is taken says
        data/any_picture.py. options: see `captions`, which gives more than the text.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("caption gives the best caption of a picture: captions([picture], ...) gives several.")
        if not isinstance(picture, ONE):
            return [found[0].text for found in self.captions(picture, **options)]
        return self.captions([picture], **options)[0][0].text

    def captions(
        self, pictures: Iterable[AnyPicture], *, attention: bool = False, **options: Unpack[Names]
    ) -> list[list[CaptionText]]:
        """Captions of several pictures with log-probability and tokens; per picture the best first.

        As many as there are beams, or num_return_sequences of them. attention: also what each token looked at.
        options: those of options.Names, ours and transformers', e.g. num_beams=5, or do_sample=True, temperature=0.7,
        top_p=0.9, num_return_sequences=3, seed=1; else the search that the model was saved with. Several threads may
        call one model. Raises ValueError with one line for a picture or an option that is not taken.
        """
        return list(itertools.chain.from_iterable(caption_pictures(self, pictures, attention, options)))

    @overload
    def answer(self, picture: AnyPicture, question: str, **options: Unpack[Names]) -> str: ...

    @overload
    def answer(self, picture: AnyPicture, question: Sequence[str], **options: Unpack[Names]) -> list[str]: ...

    def answer(self, picture: AnyPicture, question: str | Sequence[str], **options: Unpack[Names]) -> str | list[str]:
        """The best answer to a question about a picture, or to each of several; of a model trained on questions.

        picture, options: as of `caption`. Raises ValueError with one line where the model captions, and for a question
        that is longer than it reads.
        """
        if isinstance(question, str):
            return self.answers(picture, [question], **options)[0][0].text
        return [found[0].text for found in self.answers(picture, question, **options)]

    def answers(
        self, picture: AnyPicture, questions: Sequence[str], **options: Unpack[Names]
    ) -> list[list[CaptionText]]:
        """Answers to several questions about a picture with log-probability and tokens; of each the best first.

        As many as there are beams, or num_return_sequences of them. The picture is encoded once.
        """
        return answer_picture(self, picture, questions, options)

    def _initialise(self) -> None:
        """Linear and embedding weights of the decoder normal(0, D ** -0.5), biases 0; a pretrained encoder stays.

        GPT-2's 0.02 suits widths near 768; at 128 it leaves attention flat for several epochs. Layers that write into
        the residual stream start smaller by sqrt(number of such layers), so that its variance does not grow with depth.
        """
        width = self.memory_projection.out_features
        for module in self.decoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=width**-0.5)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        writers = [w for layer in self.decoder.layers for w in (layer.self_out, layer.cross_out, layer.feedforward[2])]
        for writer in writers:
            nn.init.normal_(writer.weight, std=(writer.in_features * len(writers)) ** -0.5)
        scratch = [] if isinstance(self.encoder, PretrainedTower) else self.encoder.modules()
        for module in (self.memory_projection, *scratch):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def add_contrastive_head(self) -> None:
        """Give the model a contrastive head of random weights, on the CPU."""
        self.retrieval = ContrastiveHead(self.encoder.width, self.decoder.embedding.embedding_dim)

    def image_vectors(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Images or features -> float32 (N, WIDTH) of length 1, by the contrastive head, which has to be there.

        kept: see memory.
        """
        assert self.retrieval is not None
        return self.retrieval.images(self.features(images, kept))

    def text_vectors(self, tokens: Tensor, places: Places) -> Tensor:
        """Captions (B, T), <start> first, with their places -> float32 (B, WIDTH) of length 1, likewise."""
        assert self.retrieval is not None
        return self.retrieval.texts(self.decoder(tokens, None, places), places)

    def train(self, mode: bool = True) -> "ImageToTextModel":
        super().train(mode)
        if self.freeze_encoder:
            self.encoder.eval()  # a frozen encoder has no dropout
        return self

    def compile_parts(self) -> None:
        """Compile the encoder and the decoder, in place and when first used; parameter names stay.

        The decoder's sizes change with every batch and are compiled as unknowns: the number of compilations is bounded,
        whatever the captions' lengths.
        """
        self.decoder.compile(dynamic=True)
        self.encoder.compile()

    def encode(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Images (N, 3, S, S), uint8 as the dataset gives them or float and normalised -> features (N, P, E).

        kept: (N, J) numbers of the patches that the encoder computes; None = all.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoder):
            few = images.device.type == "cpu" and not torch.is_grad_enabled() and self.encode_in_parts
            patches = (images.shape[-1] // self.encoder.patch_size) ** 2
            if kept is not None or not few:
                return self.encoder(self._normalised(images), kept)
            parts = images.split(max(1, _CPU_PATCHES // patches))
            return torch.cat([self.encoder(self._normalised(part)) for part in parts])

    def _normalised(self, images: Tensor) -> Tensor:
        """In float32, and then of the weights' type: a mean of 8 bits would shift every picture."""
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        return images.to(self.memory_projection.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ImageToTextModel":
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        if self.mean.dtype != mean.dtype:  # .half(), .to(torch.bfloat16): these two stay float32
            self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self

    def forward(self, images: Tensor, decoder_input_tokens: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `decoder_input_tokens` (B, T).

        images: (N, 3, S, S) as for `encode`, or features (N, P, E) that `encode` gave.
        image_index: (B,), which image each caption belongs to; None = one caption per image, in order.
        Padding stands at the end, where no real token sees it. It is never computed; its logits are 0.
        """
        places = find_places(decoder_input_tokens, self.decoder.pad, image_index, len(images))
        logits = self.decoder.logits(self.hidden(images, decoder_input_tokens, places))  # (R, V)
        return unpack(logits, places.in_captions, places.captions)

    def hidden(
        self, images: Tensor, decoder_input_tokens: Tensor, places: Places, kept: Tensor | None = None
    ) -> Tensor:
        """`forward` without the last map, for the real tokens only, caption after caption: (R, D). kept: see memory."""
        return self.decoder(decoder_input_tokens, self.memory(images, kept), places)

    def memory(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Images or features -> what the decoder attends to, (N, P, D).

        kept: (N, J) numbers of the patches that it may attend to, 0 .. patches - 1; None = all. An encoder that trains
        leaves out the others from its first block on; of a frozen one, and of features, their rows are left out. A
        tower's class and register tokens, which stand before the patches, are kept as well.
        """
        features = self.features(images, kept)
        return self.memory_projection(self.memory_norm(features.to(self.memory_projection.weight.dtype)))

    def features(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Images or features -> features (N, P, E), of the `kept` patches alone; see memory."""
        if images.ndim == 4 and not self.freeze_encoder:
            return self.encode(images, kept)
        return pick_patches(images if images.ndim == 3 else self.encode(images), kept, self.patches())

    @torch.inference_mode()
    def start_decoding(
        self, images: Tensor, prefix: Prefix | None = None
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """The step function that decode.py works with, holding the KV cache of these images.

        step(tokens (N*K,), parents (N*K,) or None) -> logits (N*K, V) of the next token; after <end> nothing comes, and
        logits there may be all 0. `parents` says which row of
        the step before each row continues; rows stay with their image, so the K captions of image n are rows
        n*K .. n*K+K-1 and share its cross-attention keys, computed once here. Where whole images are missing from
        `parents`, they are dropped, and N is smaller from there on.
        prefix: Q questions about the images, fed here in one pass. Then each question is decoded as an image is
        otherwise, its rows are q*K .. q*K+K-1, and all questions of an image share its keys.
        """
        memory = self.memory(images)
        asked: Asked | None = None
        if prefix is None:
            cache: Cache = [layer.memory_cache(memory) for layer in self.decoder.layers]
        else:
            places = find_places(prefix.tokens, self.decoder.pad, prefix.images, len(memory))
            cache, asked = begin_answers(self.decoder, memory, prefix, places)
        searches = len(memory if prefix is None else prefix.tokens)
        slots = torch.empty(searches, 0, 0, dtype=torch.long, device=memory.device)

        @torch.inference_mode()
        def step(tokens: Tensor, parents: Tensor | None = None) -> Tensor:
            nonlocal slots, cache, asked
            if slots.shape[2] and parents is not None and asked is not None:
                slots, cache, asked = follow_answers(slots, cache, asked, parents)
            elif slots.shape[2] and parents is not None:
                slots, cache = follow(slots, cache, parents)
            beams = torch.arange(len(tokens) // len(slots), device=tokens.device)  # (K,)
            newest = beams.expand(len(slots), -1)[:, :, None]  # (N, K, 1)
            slots = torch.cat([slots, newest], 2) if slots.shape[2] else newest
            # All K captions of an image attend to the keys of all K, and each is shown its own: that spares reordering
            # the cache at every step, and turns K products with a vector into one with a matrix.
            hidden = (slots[..., None] != beams).flatten(2)[:, None] if len(beams) > 1 else None  # (N, 1, K, L*K)
            hidden = hidden if asked is None else asked.hidden(hidden, len(beams), slots.shape[2])
            return self.decoder.step(tokens, slots.shape[2] - 1, cache, hidden, _open_rows(tokens), asked)

        return step

    @torch.inference_mode()
    def cross_attention(
        self, images: Tensor, decoder_input_tokens: Tensor, image_index: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """What each token looks at, in one pass over whole captions, with the arguments of `forward`.

        Returns (weights (layers, B, T, H, P), side): weights of the attention over an image's features, which sum to
        1 over P and are 0 for padding; the last side * side of the P are the grid of patches, row by row. The
        features before them are a tower's class and register tokens.
        """
        memory, tokens = self.memory(images), decoder_input_tokens
        places = find_places(tokens, self.decoder.pad, image_index, len(memory))
        weights: list[Tensor] = []  # layers x (R, H * P)
        self.decoder(tokens, memory, places, weights)
        heads, patches = self.decoder.layers[0].heads, memory.shape[1]
        stacked = torch.stack([unpack(layer, places.in_captions, places.captions) for layer in weights])
        pixels = images.shape[-1] if images.ndim == 4 else self.image_spec["size"]
        return stacked.view(*stacked.shape[:3], heads, patches), pixels // self.encoder.patch_size

    def patches(self) -> int:
        """How many patches a picture of the model's own size has."""
        return (self.image_spec["size"] // self.encoder.patch_size) ** 2

    def arguments(self) -> Tower:
        """What rebuilds a pretrained encoder from a checkpoint, JSON-ready, and whether there is a contrastive head."""
        own: Tower = {"contrastive": True} if self.retrieval is not None else {}
        if not isinstance(self.encoder, PretrainedTower):
            return own
        own |= {"encoder_config": self.encoder.config, "image_spec": self.image_spec}
        if isinstance(self.memory_norm, nn.Identity):
            own["memory_norm"] = False
        if self.decoder.activation != "gelu":
            own["decoder_activation"] = self.decoder.activation
        if self.decoder.never_chosen:
            own["never_chosen"] = self.decoder.never_chosen
        return own

    def encoder_identity(self) -> Mapping[str, object] | None:
        """What, besides weights and pictures, decides a pretrained encoder's features; None of one from scratch."""
        found = nameless(self.arguments().get("encoder_config"))
        layers = self.encoder.layers if isinstance(self.encoder, PretrainedTower) else ()
        return found | {"nanocaption_layers": list(layers)} if found and layers else found


def _open_rows(tokens: Tensor) -> Tensor | None:
    """The rows of tokens (R,) that have not ended; None: too few have to be worth leaving out."""
    if len(tokens) < _MANY_ROWS or tokens.device.type != "cpu":  # on a GPU the answer would be waited for
        return None
    rows = (tokens != END).nonzero()[:, 0]
    return rows if len(rows) <= _FEW_ENDED * len(tokens) else None


def build_model(config: Mapping[str, object], vocab_size: int, tower: Tower | None = None) -> ImageToTextModel:
    """The model that `config` (settings by name) describes. tower: a checkpoint's `ImageToTextModel.arguments`."""
    return ImageToTextModel(ModelSettings.of(config), vocab_size, cast(float, config["DECODER_DROPOUT"]), tower)


def assemble(state: State) -> ImageToTextModel:
    """The model of a checkpoint or export alone, with its tokenizer: no download, no data set. In eval mode on the CPU.

    Raises ValueError with one line where the parts do not fit each other.
    """
    tokenizer = tokenizer_from_json(state["tokenizer"])
    arguments = cast(Tower, state.get("model_arguments", {}))
    check_sizes(state["config"], tokenizer.get_vocab_size(), arguments, state["model_state_dict"], "The checkpoint")
    model = build_model(state["config"], tokenizer.get_vocab_size(), arguments)
    load_weights(model, state["model_state_dict"], arguments, "The checkpoint")
    model.tokenizer = tokenizer
    model.about = cast(State, {name: value for name, value in state.items() if not name.endswith("state_dict")})
    return model.eval()


class _NothingDrawn(TorchFunctionMode):
    """Leaves initial values as they are: to draw numbers without content, torch would load its compiler, a second."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:  # fmt: skip
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def check_sizes(
    config: Mapping[str, object], vocab_size: int, tower: Tower, weights: Mapping[str, Tensor], origin: str
) -> None:
    """Raise ValueError unless the model that a checkpoint describes is that of its weights; nothing is allocated.

    It is built on the meta device, whose tensors have shapes and no content, once every number is bounded.
    """
    try:
        bounds.check_settings(config, len(weights))
        if config.get("ENCODER_MODEL_NAME") is not None:
            bounds.check_tower(tower, len(weights))
        with torch.device("meta"), _NothingDrawn():
            model = build_model(config, vocab_size, tower)
    except ValueError as error:
        raise ValueError(f"{origin} describes no model that is built here: {error}") from error
    except (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{origin} describes no model that is built here: {reason}") from error
    _check_weights(model, weights, tower, origin)


def _check_weights(model: ImageToTextModel, weights: Mapping[str, Tensor], arguments: Tower, origin: str) -> None:
    named = tower_names.as_in_memory(weights, model.state_dict())
    try:
        tensors.check_fits(model, named, origin)
    except ValueError as error:
        raise ValueError(f"{error}{tower_names.versions_told(arguments.get('encoder_config'))}") from error


def load_weights(
    model: ImageToTextModel, weights: Mapping[str, Tensor], arguments: Mapping[str, object], origin: str
) -> None:
    """Give `model` the weights of a checkpoint or export, whatever version of transformers wrote the names of a tower.

    arguments: its model_arguments. Raises ValueError, listing the differences, unless they fit; with both versions of
    transformers where these are others.
    """
    _check_weights(model, weights, cast(Tower, arguments), origin)
    model.load_state_dict(tower_names.as_in_memory(weights, model.state_dict()))
