"""pycocoevalcap's own scores, of captions that are tokens already."""

import contextlib
import io

import pytest


def coco_scores(references: dict, candidates: dict) -> dict[str, float]:
    """The corpus scores; the captions are words with single spaces between."""
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    wrapped = {image: [caption] for image, caption in candidates.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        found = [*Bleu(4).compute_score(references, wrapped)[0], Cider().compute_score(references, wrapped)[0],
                 Rouge().compute_score(references, wrapped)[0]]  # fmt: skip
    return dict(zip(("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr", "ROUGE_L"), map(float, found), strict=True))
