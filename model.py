"""The captioner: the face of nanocaption/model.

captioner.py   ImageToTextModel: an image encoder, and a decoder that attends to all its patch features
encoder.py     the encoder: a ViT from scratch, or a pretrained tower
decoder.py     the decoder, with its step by step form that keeps keys and values
decode.py      beam search, diverse beams, sampling, ensembles; knows ids only
captions.py    pictures -> texts with their probabilities
exported.py    the folder of an exported model
"""

from nanocaption.model.captioner import ImageToTextModel, assemble, build_model

__all__ = ["ImageToTextModel", "assemble", "build_model"]
