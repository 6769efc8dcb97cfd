"""Agreement of raw outputs, weighted by what decoding uses: Jensen-Shannon divergence of scores, or correlation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...runtime.decode.evidence import Ratios, mean_of

__all__ = ["correlation", "divergence", "score_agreement"]

_CANDIDATES = 100
"""Number of candidates of a detector that are compared in one image: those in which either model believes most."""


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return each element's part of the Jensen-Shannon divergence of two distributions, in bits; never below 0.

    Summed over all classes of a distribution, the parts are at most the total variation distance (Lin 1991, theorem 3).
    So with a background class they are at most the larger probability of an object.
    """
    mean = (ours + theirs) / 2
    parts = [torch.xlogy(each, each) - torch.xlogy(each, mean) for each in (ours, theirs)]
    return ((parts[0] + parts[1]) / 2 / math.log(2)).clamp(min=0)


def score_agreement(ours: Tensor, theirs: Tensor, *, exclusive: bool) -> Ratios:
    """Return the agreement of two detectors' scores in each image: 1 - divergence / confidence, summed over candidates.

    A candidate's divergence is at most the larger of both models' confidences, so an agreement lies between 0 and 1,
    and confident candidates count most. The 100 candidates with the largest confidences are compared, even where both
    models are below the threshold of the query: a model that is blind to a scene differs there, too.

    Args:
        ours: probabilities of one model, ``[N, P, S]`` for P anchors or cells and S classes.
        theirs: probabilities of the other model, of the same shape.
        exclusive: whether the classes exclude each other and the first one is the background. Otherwise every class of
            every anchor is a candidate of its own.
    """
    if exclusive:
        parts = divergence(ours, theirs).sum(-1)
        confidence = 1 - torch.minimum(ours[..., 0], theirs[..., 0])
    else:
        ours, theirs = ours.flatten(1), theirs.flatten(1)
        parts = divergence(ours, theirs) + divergence(1 - ours, 1 - theirs)
        confidence = torch.maximum(ours, theirs)
    best, places = confidence.topk(min(_CANDIDATES, confidence.shape[1]), dim=1)
    total = best.sum(1)
    right = total - parts.gather(1, places).sum(1)
    pairs = torch.stack([right, total]).nan_to_num(0.0).double().cpu().numpy()
    return Ratios(np.maximum(pairs[0], 0)[:, None], pairs[1][:, None])


def correlation(ours: Tensor, theirs: Tensor) -> Ratios:
    """Return the cosine of two outputs in each image, after the mean of each channel of ``theirs`` is taken away.

    Args:
        ours: outputs of one model, ``[N, ..., C]``, channels last.
        theirs: outputs of the model that gives the means, of the same shape.
    """
    mean = theirs.reshape(-1, theirs.shape[-1]).mean(0)
    return mean_of(torch.cosine_similarity((ours - mean).flatten(1), (theirs - mean).flatten(1)).cpu().numpy())
