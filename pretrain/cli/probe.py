"""Measures a frozen encoder, by nearest neighbours or by a linear classifier.

    pretrain probe knn checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar'
    pretrain probe linear checkpoint=runs/mae_vitb 'train=shards/train-*.tar' 'val=shards/val-*.tar'

The first word says which probe; the others are of that probe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pretrain.cli.command import asks_for_help, start, whole_help
from pretrain.config.suggest import suggest

FORMS = {"knn": "knn", "linear": "linear_probe"}


def run(words: Sequence[str]) -> None:
    if not words or asks_for_help(words[0]):
        print(whole_help(__doc__ or "", list(FORMS.values())))
        sys.exit(0 if words else 2)
    if words[0] not in FORMS:
        sys.exit(f"`{words[0]}`: the first word is one of {', '.join(FORMS)}{suggest(words[0], list(FORMS))}")
    start(FORMS[words[0]], words[1:])
