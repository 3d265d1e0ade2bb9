"""What must not be written down or shown: credentials in addresses, in options and in the environment.

What a run leaves (`config.yaml`, `run.json`, wandb's files, results of probes) and what it says (log, refusals) passes
through here. Secrets are known by where they stand: before the `@` of an address, in a query that is signed, in an
option or a variable whose name says so. A secret anywhere else, in a path say, is not known to be one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "hidden"

_OPTION = re.compile("key|secret|token|pass|credential|connection|sas", re.IGNORECASE)  # of a driver
_VARIABLE = re.compile("KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SETTING = re.compile("(^|_)(key|token|secret|password|passwd|credentials?|apikey)$", re.IGNORECASE)
_LEAST = 8  # characters of a secret: shorter values are switches and counts, which stand in many a sentence
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://(?:([^\s/?#'\"`]*)@)?([^\s?#'\"`]*)([?#][^\s'\"`]*)?", re.IGNORECASE)
_SIGNED = re.compile("sig|token|key|secret|pass|credential|auth|jwt|hmac|policy", re.IGNORECASE)  # in a query
_BEARER = re.compile(r"\b(authorization:\s*\w+|bearer)\s+[^\s'\"`]+", re.IGNORECASE)
_NAMES = "secret|token|pass|credential|key"
_TYPED = re.compile(rf"([\w.]*(?:{_NAMES})[\w.]*=)(?!null\b|hidden\b|value\b)[^\s,{{}}]+", re.IGNORECASE)
_IN_BRACES = re.compile(rf"(\w*(?:{_NAMES})\w*'?\s*:\s*)([^\s,{{}}]+)(?=[^{{\n]*\}})", re.IGNORECASE)


def address(text: str) -> str:
    """Text whose addresses are without passwords and signatures.

    A query of which one part looks like a credential is left out as a whole. `abfs://container@account/` has no secret.
    """
    return _BEARER.sub(rf"\1 {HIDDEN}", _ADDRESS.sub(_plain, text)) if "://" in text else text


def shown(text: str) -> str:
    """Text as it may be shown: without what addresses, and variables of the environment, keep secret."""
    text = address(text)
    for secret in _of_environment():
        text = text.replace(secret, HIDDEN)
    return text


def typed(text: str) -> str:
    """Likewise, of lines with words that were typed: `key=value` whose key names a secret, and `{key: value}`."""
    return shown(_IN_BRACES.sub(rf"\1{HIDDEN}", _TYPED.sub(rf"\1{HIDDEN}", text)))


def hidden(options: Any, secret: bool = False) -> Any:
    """Options of a driver to be shown or written down: without what may be a secret, by its name."""
    if isinstance(options, Mapping):
        return {name: hidden(value, secret or bool(_OPTION.search(str(name)))) for name, value in options.items()}
    if secret and options is not None:
        return HIDDEN
    return _recorded(options, False)


def values(options: Any, secret: bool = False) -> Iterator[str]:
    """The secrets among a driver's options."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from values(value, secret or bool(_OPTION.search(str(name))))
    elif secret and options:
        yield str(options)


def recorded(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, or another record of plain data, as it may be written down. Doing it twice changes nothing.

    `encoder` and `objective` are built from it again, so there a name alone (`mask_token`) hides nothing.
    """
    return {name: _recorded(value, name not in ("encoder", "objective"), name) for name, value in plain.items()}


def _recorded(value: Any, by_name: bool, name: str = "") -> Any:
    if name == "storage_options":
        return hidden(value)
    if isinstance(value, Mapping):
        return {key: _recorded(one, by_name, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_recorded(one, by_name, name) for one in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if by_name and value and _SETTING.search(name) else shown(value)


class Filter(logging.Filter):
    """Takes secrets out of records; to be added to handlers, so that it sees those of every library."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = shown(record.getMessage()), None
        if record.exc_info:
            record.exc_text = shown(logging.Formatter().formatException(record.exc_info))
        return True


def guard_log() -> None:
    """From now on what this process logs is without secrets."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, Filter) for one in handler.filters):
            handler.addFilter(Filter())


def _plain(match: re.Match[str]) -> str:
    scheme, user, path, query = match.groups()
    who = ""
    if user is not None:
        secret = ":" in user or scheme.lower() in ("http", "https")
        who = f"{HIDDEN}@" if secret else f"{user}@"
    return f"{scheme}://{who}{path}" + (f"{query[0]}{HIDDEN}" if query and _SIGNED.search(query) else query or "")


def _of_environment() -> list[str]:
    """The values of variables that hold secrets, long ones first. Variables may also say where a secret lies."""
    found = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _LEAST}
    return sorted((value for value in found if not os.path.exists(value)), key=len, reverse=True)
