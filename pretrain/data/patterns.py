"""How shards are named: by patterns, of one data set or of several."""

from __future__ import annotations

from collections.abc import Sequence

Patterns = str | Sequence[str]
NamedPatterns = dict[str, Patterns]  # of several data sets
