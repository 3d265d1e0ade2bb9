"""The word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggest(word: str, known: Sequence[str]) -> str:
    """The known word that was probably meant."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong place
        last = {key.rpartition(".")[2]: key for key in known}
        close = [last[name] for name in difflib.get_close_matches(word.rpartition(".")[2], list(last), n=1, cutoff=0.8)]
    return f"; did you mean {close[0]}?" if close else ""
