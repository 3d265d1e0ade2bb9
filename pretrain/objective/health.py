"""How much features of different images differ: what falls when an encoder collapses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_std(features: Tensor) -> Tensor:
    """The standard deviation over samples of normalised features, 1 for isotropic ones, 0 for constant ones.

    Args:
        features: [N, D]; each is normalised, and the mean over its numbers is scaled by √D (as in Chen & He, arXiv
            2011.10566, §4.1).
    """
    features = features.float()
    return F.normalize(features, dim=1).std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """RankMe (Garrido et al., arXiv 2210.02885): exp of the entropy of the normalised singular values of [N, D].

    Ours is of the features about their mean. What all images share tells none of them apart, and can be far the
    greatest part: of a small MAE whose features tell digits apart, the rank would be 1.3 with it and is 16 without.

    It lies between 1, where the features differ in one direction or not at all, and min(N − 1, D). NaN where a feature
    is not finite.
    """
    on_host = features.float().cpu()
    if not on_host.isfinite().all():
        return features.new_full((), math.nan, dtype=torch.float32)
    values = torch.linalg.svdvals(on_host - on_host.mean(dim=0))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp().to(features.device)
