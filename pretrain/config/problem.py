"""What is wrong with what a user asked for. It knows no library, so that helper processes start in an instant."""

from __future__ import annotations

from collections.abc import Iterable

from pretrain.config import secret

# A constructor's argument and what is wrong with its value. A class that has rules between its arguments states them
# in a static method `problems(**arguments) -> Iterator[Problem]`, which its constructor refuses by and which the
# configuration check calls before anything is built.
Problem = tuple[str, str]


class UserError(ValueError):
    """A mistake that the user can mend: names the value, the reason and the fix, and is shown without a traceback.

    Its sentence holds no password of an address, whoever wrote it.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(secret.shown(str(sentence)))


def refuse(owner: object, problems: Iterable[Problem]) -> None:
    """Raises ValueError with all the problems of an object under construction, if there are any."""
    lines = [f"`{argument}` {reason}" for argument, reason in problems]
    if lines:
        raise ValueError(f"{type(owner).__name__}: " + "; ".join(lines))
