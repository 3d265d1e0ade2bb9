"""Packs images into shards; checks, describes, repairs and rewrites shards.

    pretrain shards images=IMAGES out=shards             a folder or tar of images
    pretrain shards imagenet=IMAGENET out=shards         ImageNet as people have it
    pretrain shards digits=true out=shards               scikit-learn's handwritten digits
    pretrain shards action=verify 'data=shards/*.tar'    or stats, repair, reshard, dedupe, index

Each of the three, packing, digits and action, has words of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pretrain.cli.command import asks_for_help, start, whole_help

FORMS = {"action": "doctor", "data": "doctor", "digits": "make_digits"}  # by a word that only one of them has
_PACKS = "make_shards"


def run(words: Sequence[str]) -> None:
    given = {word.partition("=")[0] for word in words if not asks_for_help(word)}
    if not given:
        print(whole_help(__doc__ or "", [_PACKS, "make_digits", "doctor"]))
        sys.exit(0 if words else 2)
    start(next((form for name, form in FORMS.items() if name in given), _PACKS), words)
