"""What people type after a command: `key=value` words, for commands of ours and for Hydra.

The words of a command are the fields of a dataclass, each with what `--help` says of it (`word`).

Hydra's grammar refuses `{`, `[` and a second `=` inside a word and takes `a,b` for a sweep. Shard patterns and paths
need them, so they are put in quotes here before Hydra sees them.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar, get_type_hints

from pretrain.config import secret
from pretrain.config.problem import UserError
from pretrain.config.signature import describe, matches
from pretrain.config.suggest import suggest
from pretrain.config.usage import usage_of

_PATHS = ("data.train", "data.val", "data.index_dir", "data.cache_dir", "data.skip", "output_dir")
_KEY = rf"\+{{0,2}}(?:{'|'.join(map(re.escape, _PATHS))}|data\.train\.[\w-]+)="
_NAMED = re.compile(r"\s*(?!pipe:)([A-Za-z_][\w-]*):(?!//)(.*)", re.DOTALL)  # name: patterns; no address, no command

T = TypeVar("T")


def quote(arguments: Sequence[str]) -> list[str]:
    """Puts shard lists and paths in quotes. Doing it twice changes nothing."""
    return [_quote_argument(argument) for argument in arguments]


def _quote_argument(argument: str) -> str:
    match = re.fullmatch(rf"({_KEY})(.+)", argument, flags=re.DOTALL)
    if match is None or match[2] == "null":
        return argument
    key, value = match.groups()
    if pairs := split_names(value):
        return f"{key}{{{','.join(f'{name}: {_quote_patterns(one)}' for name, one in pairs.items())}}}"
    return argument if len(split_list(value)) > 1 else key + _quote_patterns(value)


def split_names(text: str) -> dict[str, str]:
    """`{name: patterns, …}` by name, nothing for other values: braces with neither a name nor a colon are patterns."""
    if not (text.startswith("{") and text.endswith("}")):
        return {}
    pairs = [_NAMED.fullmatch(item) for item in split_list(text[1:-1])]
    found = {pair[1]: pair[2].strip() for pair in pairs if pair is not None}
    return found if len(found) == len(pairs) else {}


def _quote_patterns(value: str) -> str:
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        return f"[{','.join(_quote_value(item) for item in split_list(value[1:-1]))}]"
    return _quote_value(value)


def _quote_value(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value
    # a backslash means itself in Hydra's quotes, except before a quote, the closing one included
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def split_list(text: str) -> list[str]:
    """Splits at commas that stand outside braces, brackets and quotes."""
    items, depth, inside, start = [], 0, "", 0
    for position, sign in enumerate(text):
        if inside:
            inside = "" if sign == inside else inside
        elif sign in "'\"":
            inside = sign
        elif sign in "{[(":
            depth += 1
        elif sign in "}])":
            depth -= 1
        elif sign == "," and depth <= 0:
            items.append(text[start:position])
            start = position + 1
    return [*items, text[start:]]


def word(
    help: str,
    default: Any = MISSING,
    *,
    example: str,
    was: str = "",
    was_values: Mapping[str, str] | None = None,
    bare: bool = False,
) -> Any:
    """A field of a command's dataclass: a word that people type, and what `--help` says of it.

    Args:
        help: what it means, in a sentence.
        default: without one the word is required.
        example: a value as it is typed.
        was: what the word was called before; that name is refused with the present one.
        was_values: what its values were called before, each with its present name.
        bare: whether the value may be typed alone, without `key=`.
    """
    said = {"help": help, "example": example, "was": was, "was_values": was_values or {}, "bare": bare}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=said)
    return field(default=default, metadata=said)


def parse(schema: type[T], arguments: Sequence[str]) -> T:
    """`key=value` words as a dataclass whose fields are the keys; those without a default are required.

    Raises:
        UserError: with all mistakes at once.
    """
    values, lines = _read(schema, arguments)
    if lines:
        raise UserError("\n".join(lines))
    return schema(**values)


def _split_words(schema: type[Any], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words that a command declares, the others, which are overrides of a configuration)."""
    known = {name for one in fields(schema) for name in (one.name, one.metadata.get("was"))}
    bare = _bare(schema) is not None
    mine = [typed for typed in arguments if typed.partition("=")[0] in known or (bare and not typed.partition("=")[1])]
    return mine, [typed for typed in arguments if typed not in mine]


def _bare(schema: type[Any]) -> str | None:
    """The word whose value may be typed alone."""
    return next((one.name for one in fields(schema) if one.metadata.get("bare")), None)


def _read(schema: type[Any], arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    hints, known, bare = get_type_hints(schema), [one.name for one in fields(schema)], _bare(schema)
    values: dict[str, Any] = {}
    lines = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals and bare is not None:
            name, equals, text = bare, "=", argument
        if not equals:
            lines.append(f"`{argument}` is not understood: write key=value")
        elif now := _present_name(schema, name, text):
            lines.append(f"{argument}: it is called {now} now")
        elif name not in known:
            lines.append(f"{argument}: there is no such key{suggest(name, known)}")
        elif name in values:
            lines.append(f"{name} is given more than once (a shell expands unquoted braces into several): give it once")
        else:
            values[name] = _value(text, hints[name])
            if not matches(values[name], hints[name]):
                lines.append(f"{argument}: must be {describe(hints[name])}")
    required = [one.name for one in fields(schema) if one.default is MISSING and one.default_factory is MISSING]
    lines += [f"{name}=… is missing" for name in required if name not in values]
    return values, lines


def _present_name(schema: type[Any], name: str, text: str) -> str:
    """What a word is called now whose name, or whose value, was another before; "" if it was not."""
    for one in fields(schema):
        values: Mapping[str, str] = one.metadata.get("was_values", {})
        if name == one.metadata.get("was") or (name == one.name and text in values):
            return f"{one.name}={values.get(text, text)}"
    return ""


def _value(text: str, hint: Any) -> Any:
    """The reading of a word that a type hint admits, or else the text itself."""
    readings: list[Any] = [{"null": None, "true": True, "false": False}.get(text, text)]
    if text.startswith("[") and text.endswith("]"):
        items = [item.strip().strip("'\"") for item in split_list(text[1:-1])]
        readings += [items, [_value(item, int | float | str) for item in items]]
    if pairs := split_names(text):
        readings.append({name: _value(one, str | list[str]) for name, one in pairs.items()})
    for number in (int, float):
        try:
            readings.append(number(text))
        except ValueError:
            continue
    strings = [reading for reading in readings if isinstance(reading, str)]
    others = [reading for reading in readings if not isinstance(reading, str)]
    return next((reading for reading in [*others, *strings] if matches(reading, hint)), text)


def script(schema: type[T], usage: str, main: Callable[..., None], words: Sequence[str] | None = None) -> None:
    """Runs the `main` of a command with its words; a user's mistake ends it with a sentence instead of a traceback.

    A `main` of two parameters is also given the words that the command does not declare: overrides of a configuration.

    Args:
        schema: a dataclass whose fields are the command's own words.
        usage: what it does, with an example; shown for `--help`, or when nothing was typed.
        main: what it does.
        words: what was typed; by default what this process was started with.
    """
    typed = list(sys.argv[1:] if words is None else words)
    if not typed or any(one in ("-h", "--help") for one in typed):
        print(usage_of(schema, usage))
        sys.exit(0 if typed else 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    secret.guard_log()
    take_overrides = len(inspect.signature(main).parameters) > 1
    mine, others = _split_words(schema, typed) if take_overrides else (typed, [])
    try:
        values, lines = _read(schema, mine)
        if lines:
            raise UserError("\n".join(lines + _wrong_overrides(others)))
        arguments = schema(**values)
        if take_overrides:
            main(arguments, quote(others))
        else:
            main(arguments)
    except UserError as mistake:
        sys.exit(secret.typed(str(mistake)))


def _wrong_overrides(words: Sequence[str]) -> list[str]:
    if not words:
        return []
    from pretrain.config.check import mistakes_without_data  # Hydra, which no help needs

    return mistakes_without_data(quote(words))
