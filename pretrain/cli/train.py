"""Trains an encoder: the same as `python -m pretrain`.

    pretrain train +experiment=mae_vitl 'data.train=SHARDS/train-{000000..001281}.tar'

All words are key=value overrides of the configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def run(words: Sequence[str]) -> None:
    from pretrain.__main__ import main

    sys.argv[1:] = words  # where Hydra, and the ranks that are started, read them
    main()
