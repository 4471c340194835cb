"""A trained model as a VisionEncoderDecoderModel of transformers: loads and generates there without any code of ours.

The decoder is GPT-2's, weight for weight. Between encoder and decoder stands a LayerNorm of ours, `memory_norm`, for
which VisionEncoderDecoderModel has no place, so the encoder must end in it. LayerNorm of what LayerNorm gave is not
affine, as the second divides by a spread that depends on the picture, and so it folds into no linear map. What an
encoder does have is the final norm of its own, of any input. Hence:

    ViT, DeiT, DINOv2, SigLIP   The final norm becomes `memory_norm`, and one more block makes the residual stream
                                x -> x + c LN(x), where LN is the final norm there was. Its attention gives nothing; its
                                feed-forward layers are the identity, as f(u) - f(-u) = u of GELU in each of its forms.
                                c = 2 ** 30 leaves nothing of x beside it in float32 or bfloat16, and LayerNorm does not
                                mind the scale. float16 ends at 65504: there this gives NaN, and the card says so.
    CLIP                        has no final norm, but one behind its embeddings, which ViT has not: a first block of
                                that kind, and all that writes into the stream grows by c.
    from scratch, "patch" stem  SigLIP's vision model has the same parts, then as above. The "conv" stem is in no model.

Only epsilons differ: c makes those behind it vanish, as that of `memory_norm`, 1e-5 beside a variance of about 1.
What one takes from the result, on average over drawn pictures, is taken from the norm's weights instead. Every export
is compared with ours by its logits and ids before it is handed out.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from nanocaption.base.tensors import State
from nanocaption.data.any_picture import fitted_picture
from nanocaption.data.tokenizer import END, PAD, START
from nanocaption.demo_set import draw_scene, sample_scene
from nanocaption.model.captioner import ImageToTextModel, assemble
from nanocaption.model.decoder import Decoder, DecoderLayer
from nanocaption.model.encoder import PretrainedTower, VisionTransformer, of_transformers

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        GPT2LMHeadModel,
        PreTrainedConfig,
        PreTrainedModel,
        VisionEncoderDecoderModel,
    )

_ELSE = "Export it as ONNX (--format onnx), or as nanocaption"
_SCALE = 2.0**30  # c; a power of two, so that it rounds nothing
_FINAL_NORM = {
    "vit": "layernorm", "deit": "layernorm", "dinov2": "layernorm", "dinov2_with_registers": "layernorm",
    "siglip_vision_model": "post_layernorm",
}  # fmt: skip


@torch.no_grad()
def as_transformers(state: State) -> "VisionEncoderDecoderModel":
    """The model of a checkpoint or export, in eval mode. ValueError, with one line, for what cannot be expressed."""
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    model = assemble(state)
    encoder, decoder = _encoder(model), _decoder(model.decoder, float(state["config"]["DECODER_DROPOUT"]))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = START, PAD, END
    config.bos_token_id = START
    whole = VisionEncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    projection = model.memory_projection
    if hasattr(whole, "enc_to_dec_proj"):
        _copy(whole.enc_to_dec_proj, projection.weight, projection.bias)
    else:  # equal widths: no map stands between them, so each layer's keys and values take it
        for theirs, ours in zip(decoder.transformer.h, model.decoder.layers, strict=True):
            first, second = projection.weight.double(), ours.cross_kv.weight.double()
            bias = ours.cross_kv.bias + second @ projection.bias.double()
            _copy(theirs.crossattention.c_attn, (second @ first).T, bias)
    whole.generation_config = generation_config(state)
    return whole.eval()


def generation_config(state: State) -> "GenerationConfig":
    """The search that the model was saved with. transformers counts <start> in its lengths."""
    from transformers import GenerationConfig

    config = state["config"]
    return GenerationConfig(
        max_length=config["MAX_SEQ_LEN"], num_beams=config["BEAM_SIZE"], length_penalty=config["LENGTH_PENALTY"],
        min_length=config["MIN_LENGTH"] + 1 if config["MIN_LENGTH"] else 0, early_stopping=False, do_sample=False,
        no_repeat_ngram_size=config["NO_REPEAT_NGRAM"], decoder_start_token_id=START, bos_token_id=START,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip


# --- The decoder ---


def _decoder(ours: Decoder, dropout: float) -> "GPT2LMHeadModel":
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary, width = ours.embedding.weight.shape
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=ours.max_seq_len, n_embd=width, n_layer=len(ours.layers),
        n_head=ours.layers[0].heads, n_inner=ours.layers[0].feedforward[0].out_features,
        activation_function=ours.activation, layer_norm_epsilon=ours.norm.eps, embd_pdrop=dropout, resid_pdrop=dropout,
        attn_pdrop=0.0, add_cross_attention=True, is_decoder=True, tie_word_embeddings=True, bos_token_id=START,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config)
    _copy(theirs.transformer.wte, ours.embedding.weight)
    _copy(theirs.transformer.wpe, ours.position_embedding.weight)
    _copy(theirs.transformer.ln_f, ours.norm.weight, ours.norm.bias)
    for block, layer in zip(theirs.transformer.h, ours.layers, strict=True):
        _copy_layer(block, layer)
    return theirs


def _copy_layer(block: nn.Module, layer: DecoderLayer) -> None:
    for norm, of in (
        (block.ln_1, layer.self_norm), (block.ln_cross_attn, layer.cross_norm), (block.ln_2, layer.feedforward_norm),
    ):  # fmt: skip
        _copy(norm, of.weight, of.bias)
    for linear, of in (
        (block.attn.c_attn, layer.self_qkv), (block.attn.c_proj, layer.self_out),
        (block.crossattention.q_attn, layer.cross_q), (block.crossattention.c_attn, layer.cross_kv),
        (block.crossattention.c_proj, layer.cross_out),
        (block.mlp.c_fc, layer.feedforward[0]), (block.mlp.c_proj, layer.feedforward[2]),
    ):  # fmt: skip
        _copy(linear, of.weight.T, of.bias)  # GPT-2 keeps its maps transposed


def _copy(module: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    module.weight.copy_(weight)
    if bias is not None:
        module.bias.copy_(bias)


# --- The encoder ---


def _encoder(model: ImageToTextModel) -> "PreTrainedModel":
    """An encoder of transformers that ends in the model's `memory_norm`, where it has one."""
    norm = model.memory_norm if isinstance(model.memory_norm, nn.LayerNorm) else None
    if isinstance(model.encoder, VisionTransformer):
        tower = _as_siglip(model.encoder, model.image_spec["size"])
    elif isinstance(model.encoder, PretrainedTower):
        if model.encoder.layers:
            raise ValueError(
                f"The decoder sees the outputs of blocks {', '.join(map(str, model.encoder.layers))} side by side "
                f"(ENCODER_LAYERS), and an encoder of transformers gives those of the last alone. {_ELSE}."
            )
        tower = _at_size(of_transformers(model.encoder), model.image_spec["size"])
    if norm is None:
        return tower
    lost = [norm]
    if tower.config.model_type == "clip_vision_model":
        lost += [module for module in _blocks(tower).modules() if isinstance(module, nn.LayerNorm)]
    pixels = (drawn_pictures(model, 4) / 255 - model.mean) / model.std
    _take_epsilons(lambda: norm(tower(pixels).last_hidden_state), lost)
    return _clip_as_vit(tower, norm) if tower.config.model_type == "clip_vision_model" else _with_norm(tower, norm)


def _take_epsilons(run: Callable[[], Tensor], norms: Sequence[nn.LayerNorm]) -> None:
    """Multiply each norm's weight by what its epsilon leaves of its result, on average over what `run` gives it."""
    left: dict[nn.Module, float] = {}

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variances = inputs[0].double().var(-1, unbiased=False)
        left[norm] = (1 + cast(nn.LayerNorm, norm).eps / variances).rsqrt().mean().item()

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    run()
    for hook in hooks:
        hook.remove()
    for norm in norms:
        norm.weight *= left[norm]


def drawn_pictures(model: ImageToTextModel, count: int) -> Tensor:
    """Scenes of the demo set as the model wants them, uint8 (count, 3, S, S): pictures that are always at hand."""
    side = max(160, model.image_spec["size"])
    scenes = [draw_scene(sample_scene(7, number), side) for number in range(count)]
    return torch.stack([fitted_picture(scene, model.image_spec) for scene in scenes])


def _at_size(tower: "PreTrainedModel", size: int) -> "PreTrainedModel":
    """The tower whose own input has that side: its position embeddings are resized once, and not in every call.

    Built as transformers will build it: with a pooler where it always has one, of weights 0, which nothing uses.
    """
    from transformers import AutoModel

    config = copy.deepcopy(tower.config)
    old, config.image_size = _side(config.image_size), size
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    new = AutoModel.from_config(config)
    weights = dict(tower.state_dict())
    if old != size:
        (name,) = (name for name in weights if "position_embedding" in name)
        flat = weights[name].view(-1, config.hidden_size)
        patch = _side(config.patch_size)
        tokens = len(flat) - (old // patch) ** 2 + (size // patch) ** 2
        embeddings = next(module for module in tower.modules() if hasattr(module, "interpolate_pos_encoding"))
        resized = embeddings.interpolate_pos_encoding(torch.zeros(1, tokens, config.hidden_size), size, size)
        weights[name] = resized.reshape_as(new.state_dict()[name])
    _load(new, weights)
    return new


def _side(size: int | list[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _load(tower: "PreTrainedModel", weights: dict[str, Tensor]) -> None:
    """What `weights` does not have becomes 0."""
    for parameter in tower.parameters():
        parameter.zero_()
    found = tower.load_state_dict(weights, strict=False)
    strangers = [name for name in found.unexpected_keys if not name.startswith("head.")]
    if strangers:
        raise ValueError(f"The encoder has {strangers[0]}, for which transformers has no place. {_ELSE}.")


def _with_norm(tower: "PreTrainedModel", norm: nn.LayerNorm) -> "PreTrainedModel":
    """The tower with `norm` after its final norm, see the top of this file."""
    kind = tower.config.model_type
    if kind not in _FINAL_NORM:
        raise ValueError(f"An encoder of the type {kind!r} cannot be followed by a norm in transformers. {_ELSE}.")
    weights = dict(tower.state_dict())
    last = tower.get_submodule(_FINAL_NORM[kind])
    longer = _deeper(tower.config)
    _load(longer, weights)
    _make_norm(_blocks(longer)[-1], last, _SCALE)
    _copy(longer.get_submodule(_FINAL_NORM[kind]), norm.weight, norm.bias)
    return longer


def _deeper(config: "PreTrainedConfig") -> "PreTrainedModel":
    """A tower of one more block, with random weights."""
    from transformers import AutoModel

    config = copy.deepcopy(config)
    config.num_hidden_layers += 1
    return AutoModel.from_config(config)


def _blocks(tower: "PreTrainedModel") -> nn.ModuleList:
    return next(module for module in tower.modules() if isinstance(module, nn.ModuleList))


def _make_norm(block: nn.Module, norm: nn.LayerNorm, scale: float) -> None:
    """Make of a pre-norm block, whose weights are 0, x -> x + scale * norm(x). ValueError where it has no room."""
    width = len(norm.weight)
    maps = _maps(block)
    first, second = maps[-2:]  # the feed-forward layers come last, after the maps of the attention
    # SwiGLU: two maps, or one of twice the width, whose results are multiplied.
    gated = sum(module.in_features == width and module.out_features == first.out_features for module in maps) > 1
    gated = gated or second.in_features != first.out_features
    if second.out_features != width or first.out_features < 2 * width or gated:
        raise ValueError(f"The encoder's feed-forward layers have no room for a norm in transformers. {_ELSE}.")
    for module in block.modules():
        if isinstance(module, nn.LayerNorm):
            _copy(module, norm.weight, norm.bias)
    for name, parameter in block.named_parameters():
        if "lambda" in name:  # DINOv2's scale of what each part adds
            parameter.fill_(1.0)
    own = torch.arange(width)
    first.weight[own, own], first.weight[own + width, own] = 1.0, -1.0
    second.weight[own, own], second.weight[own, own + width] = scale, -scale


def _as_siglip(encoder: VisionTransformer, size: int) -> "PreTrainedModel":
    """The ViT from scratch as SigLIP's vision model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    if not isinstance(encoder.stem, nn.Conv2d):
        raise ValueError(
            "The encoder was trained from scratch with VIT_STEM = 'conv', and transformers has no ViT that begins with "
            f"convolutions (with VIT_STEM = 'patch' it has). {_ELSE}."
        )
    width = encoder.width
    config = SiglipVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=len(encoder.blocks),
        num_attention_heads=encoder.blocks[0].heads, image_size=size, patch_size=encoder.patch_size, hidden_act="gelu",
        layer_norm_eps=encoder.norm.eps, vision_use_head=False,
    )  # fmt: skip
    tower = SiglipVisionModel(config)
    embeddings = next(module for module in tower.modules() if hasattr(module, "patch_embedding"))
    _copy(embeddings.patch_embedding, encoder.stem.weight, encoder.stem.bias)
    _copy(embeddings.position_embedding, encoder.position[0])
    _copy(tower.get_submodule("post_layernorm"), encoder.norm.weight, encoder.norm.bias)
    for theirs, ours in zip(_blocks(tower), encoder.blocks, strict=True):
        _copy(theirs.layer_norm1, ours.attention_norm.weight, ours.attention_norm.bias)
        _copy(theirs.layer_norm2, ours.feedforward_norm.weight, ours.feedforward_norm.bias)
        parts = zip(ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True)
        attention = theirs.self_attn
        for linear, (weight, bias) in zip((attention.q_proj, attention.k_proj, attention.v_proj), parts, strict=True):
            _copy(linear, weight, bias)
        _copy(_out(attention), ours.attention_out.weight, ours.attention_out.bias)
        _copy(theirs.mlp.fc1, ours.feedforward[0].weight, ours.feedforward[0].bias)
        _copy(theirs.mlp.fc2, ours.feedforward[2].weight, ours.feedforward[2].bias)
    return tower


def _out(attention: nn.Module) -> nn.Module:
    """The map that leaves an attention; transformers has named it in two ways."""
    return attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj


def _clip_as_vit(tower: "PreTrainedModel", norm: nn.LayerNorm) -> "PreTrainedModel":
    """A CLIP tower, and `norm` after it, as a ViT of one more block, see the top of this file."""
    from transformers import ViTConfig, ViTModel

    clip = tower.config
    config = ViTConfig(
        hidden_size=clip.hidden_size, intermediate_size=clip.intermediate_size, image_size=clip.image_size,
        num_hidden_layers=clip.num_hidden_layers + 1, num_attention_heads=clip.num_attention_heads,
        patch_size=clip.patch_size, hidden_act=clip.hidden_act, layer_norm_eps=clip.layer_norm_eps,
    )  # fmt: skip
    vit = ViTModel(config)
    _load(vit, {})
    before = next(module for module in tower.modules() if hasattr(module, "class_embedding"))
    vit.embeddings.cls_token.copy_(before.class_embedding.view(1, 1, -1))
    vit.embeddings.position_embeddings.copy_(before.position_embedding.weight[None])
    _copy(vit.embeddings.patch_embeddings.projection, before.patch_embedding.weight, before.patch_embedding.bias)
    blocks = _blocks(vit)
    _make_norm(blocks[0], tower.get_submodule("pre_layrnorm"), _SCALE)
    for theirs, ours in zip(blocks[1:], _blocks(tower), strict=True):
        norms = [module for module in theirs.modules() if isinstance(module, nn.LayerNorm)]
        for to, of in zip(norms, (ours.layer_norm1, ours.layer_norm2), strict=True):
            _copy(to, of.weight, of.bias)
        attention, maps = ours.self_attn, _maps(theirs)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj, _out(attention), ours.mlp.fc1, ours.mlp.fc2)
        for to, of in zip(maps, parts, strict=True):
            scale = _SCALE if to in (maps[3], maps[5]) else 1.0  # what writes into the stream
            _copy(to, scale * of.weight, scale * of.bias)
    _copy(vit.layernorm, norm.weight, norm.bias)
    return vit


def _maps(block: nn.Module) -> list[nn.Linear]:
    """Of a ViT's block: query, key, value, what leaves the attention, and the two feed-forward layers.

    By their order, which stays, where their names have changed with the versions.
    """
    return [module for module in block.modules() if isinstance(module, nn.Linear)]
