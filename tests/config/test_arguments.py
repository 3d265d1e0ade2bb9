"""The words of a command: what is read from them, and what `--help` says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from pretrain.config.arguments import parse, script, word
from pretrain.config.problem import UserError
from pretrain.config.usage import listing


@dataclass(frozen=True)
class Arguments:
    key: str = word("What is asked about.", example="encoder.depth", bare=True)
    solver: Literal["logreg", "sgd"] = word(
        "How.", "logreg", example="sgd", was="protocol", was_values={"paper": "sgd"}
    )
    sizes: list[int] = word("How large, one after the other.", [1, 2], example="[3,4]")
    limit: float | None = word("At most.", None, example="0.5")
    strict: bool = word("Whether to refuse.", False, example="true")


def test_a_bare_word_is_the_one_that_may_stand_alone() -> None:
    assert parse(Arguments, ["encoder.depth", "limit=1"]) == Arguments("encoder.depth", limit=1)
    assert parse(Arguments, ["key=encoder.depth"]).key == "encoder.depth"
    with pytest.raises(UserError, match="key is given more than once"):
        parse(Arguments, ["one", "two"])


def test_bare_words_are_the_commands_own_and_not_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    script(
        Arguments, "", lambda a, overrides: given.append((a, overrides)), ["encoder.depth", "+experiment=x", "limit=2"]
    )
    assert given == [(Arguments("encoder.depth", limit=2), ["+experiment=x"])]


def test_lists_of_a_default_are_not_shared() -> None:
    assert parse(Arguments, ["a"]).sizes == [1, 2]
    assert parse(Arguments, ["a"]).sizes is not parse(Arguments, ["a"]).sizes


@pytest.mark.parametrize(
    ("typed", "now"),
    [("protocol=paper", "solver=sgd"), ("protocol=logreg", "solver=logreg"), ("solver=paper", "solver=sgd")],
)
def test_an_old_name_or_value_is_refused_with_the_present_one(typed: str, now: str) -> None:
    with pytest.raises(UserError, match=f"^{typed}: it is called {now} now$"):
        parse(Arguments, ["a", typed])


def test_the_listing_gives_meaning_type_default_and_example() -> None:
    assert listing(Arguments).splitlines() == [
        "  key     What is asked about.",
        "          text; required; example: encoder.depth",
        "  solver  How.",
        "          one of logreg, sgd; default logreg; example: solver=sgd",
        "  sizes   How large, one after the other.",
        "          a list of a whole number; default [1,2]; example: 'sizes=[3,4]'",
        "  limit   At most.",
        "          a number; optional; example: limit=0.5",
        "  strict  Whether to refuse.",
        "          true or false; default false; example: strict=true",
    ]
