"""Prepared data -> batches: the face of nanocaption/data.

prepared.py    a prepared set on the disk: its records, whether it is whole, names of mixes
dataset.py     ImageTextDataset, collate_fn, Batch
order.py       the order of an epoch, a pure function of (seed, epoch)
loader.py      batches read by worker processes
transform.py   a picture file -> what an encoder is given; pictures.py: any file -> RGB
packing.py     where the real tokens stand, so that no padding is computed
inputs.py      what a run reads: captions as ids, pictures or features from caches.py
"""

from nanocaption.data.dataset import Batch, ImageTextDataset, collate_fn
from nanocaption.data.loader import make_loader
from nanocaption.data.prepared import load_records

__all__ = ["Batch", "ImageTextDataset", "collate_fn", "load_records", "make_loader"]
