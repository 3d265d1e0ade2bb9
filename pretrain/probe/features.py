"""Features of a frozen encoder, one vector a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from pretrain.encoder.encoder import Encoder
from pretrain.records import Batch, UserError

Pool = Literal["cls", "mean"]
Featurize = Callable[[Batch], Tensor]


def pooled(encoder: Encoder, images: Tensor, pool: Pool) -> Tensor:
    """One vector for each image: the class token, or the mean of the patches. [B, C, H, W] → [B, D].

    Raises:
        UserError: `pool` is cls and the encoder has none.
    """
    tokens = encoder(images)
    if pool == "mean":
        return tokens.patches.mean(dim=1)
    if tokens.cls is None:
        raise UserError("pool=cls: this encoder has no class token; use pool=mean")
    return tokens.cls


@torch.no_grad()
def extract(
    batches: Iterable[Batch], featurize: Featurize, labelled_only: bool = False, sought: str = "a `.cls` member"
) -> tuple[Tensor, Tensor]:
    """Features [N, D] float32 and labels [N] of all samples, on the CPU, but for those that could not be decoded.

    Args:
        batches: as a loader yields them.
        featurize: what is made of each.
        labelled_only: whether samples without a label are left out, too.
        sought: what holds a sample's label, for messages.

    Raises:
        UserError: a sample has no label, and none may be left out for that.
    """
    features, labels = [], []
    for batch in batches:
        if not labelled_only and (batch.labels < 0).any():
            key = batch.keys[int((batch.labels < 0).nonzero()[0])]
            raise UserError(
                f"sample `{key}` has no label ({sought}): a probe needs one for each; labels=… says where they are"
            )
        bad = torch.tensor(sorted({sample.g for sample in batch.replaced}), dtype=batch.g.dtype)
        good = ~torch.isin(batch.g.cpu(), bad) & (batch.labels.cpu() >= 0)
        features.append(featurize(batch).float().cpu()[good])
        labels.append(batch.labels.cpu()[good])
    return torch.cat(features), torch.cat(labels)
