"""What a configuration key means, what it is and was before, who reads it, and what the recipes make of it, as text.

The yaml files of `conf/` are the one source: their comments and values, the class that a node names, and the type that
its constructor wants. Nothing is built or imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.config import mentions, renamed, secret
from pretrain.config.check import Settings
from pretrain.config.comments import first_sentence, read
from pretrain.config.declared import declared
from pretrain.config.layout import facts, listing, paragraph, shown
from pretrain.config.meaning import HYDRAS, Sources, elsewhere, groups, options, recipes
from pretrain.config.overrides import composed, folder, hydra_of, understood
from pretrain.config.problem import UserError
from pretrain.config.signature import describe
from pretrain.config.suggest import suggest

_MOST = 8  # values of recipes that are shown
_OWN_IN_EACH = ("name", "output_dir")  # keys that every recipe has to set, so that a table says nothing


@dataclass(frozen=True)
class Configuration:
    """A composed configuration by dotted key, nodes included, with the files that it comes from.

    Args:
        sources: these files.
        raw: values with their interpolations as they stand.
        values: values as the run reads them.
        typed: the keys that were set by words of the command.
    """

    sources: Sources
    raw: dict[str, Any]
    values: dict[str, Any]
    typed: frozenset[str]

    def has(self, key: str) -> bool:
        return key in self.raw or self.sources.default(key)[1] is not None

    def target(self, node: str) -> str:
        """The dotted name of the class of a node, "" without one."""
        value = self.values.get(f"{node}._target_")
        return value if isinstance(value, str) else self.sources.target(node)

    def plain(self, key: str) -> Any:
        """The value of a key; of one that is turned off with its node, the default."""
        return self.values[key] if key in self.values else self.sources.default(key)[0]


def configuration(words: Sequence[str]) -> Configuration:
    """The configuration that overrides give.

    Raises:
        UserError: with all overrides that are not understood.
    """
    accepted, lines = understood(words)
    if lines:
        raise UserError("\n".join(lines))
    cfg, own = composed(accepted), hydra_of(accepted)
    chosen = own["runtime"]["choices"]
    choices = {str(group): str(option) for group, option in chosen.items() if "/" not in str(group)}
    homes = [str(place).removeprefix("file://") for place in own["searchpath"] if str(place).startswith("file://")]
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as failure:
        raise UserError(str(failure).splitlines()[0]) from failure
    sources = Sources(choices, choices.pop("experiment", ""), (folder(), *map(Path, homes)))
    typed = frozenset(word.partition("=")[0].lstrip("+~") for word in accepted)
    return Configuration(sources, _flat(secret.recorded(raw)), _flat(secret.recorded(values)), typed - choices.keys())


def explained(key: str, words: Sequence[str] = ()) -> str:
    """The explanation of a key in the configuration that overrides give.

    Raises:
        UserError: there is no such key, or an override is not understood.
    """
    if key == "experiment":
        return _recipes()
    if key.partition(".")[0] == "hydra":
        raise UserError(f"{key}: it is a key of Hydra's own, which `python -m pretrain --hydra-help` explains")
    now, said = renamed.key(key), []
    if now != key:
        said.append(f"{key} is called {now} now.")
    one = configuration(words)
    if not one.has(now):
        one, option = _with_option(now, words, one)
        said.append(f"{now} belongs to {option}; here is what it is with that.")
    whole = now in one.sources.choices or (isinstance(one.plain(now), dict) and one.target(now) != "")
    return "\n\n".join([*said, _of_node(now, one) if whole else _of_value(now, one)])


def _with_option(key: str, words: Sequence[str], one: Configuration) -> tuple[Configuration, str]:
    """(the configuration with the option that has a key, that option), where the command does not choose another."""
    group, option = key.partition(".")[0], elsewhere(key)
    chosen = bool(one.sources.recipe) or any(word.startswith(f"{group}=") for word in words)
    if option and not chosen:
        return configuration([*words, f"{group}={option}"]), f"{group}={option}"
    if option:
        raise UserError(
            f"{key}: there is no such key with {group}={one.sources.choices[group]}; {group}={option} has it"
        )
    for home, names in groups().items():
        if key in names:
            plus = "+" if home == "experiment" else ""
            raise UserError(f"{key} is an option, not a key: {plus}{home}={key}; `pretrain explain {home}` lists them")
    below = [f"{path.parent.name}.{name}" for path, file in options().items() for name in file.values]
    raise UserError(f"{key}: there is no such key{suggest(key, [*one.raw, *below])}")


def meaning(one: Configuration, key: str) -> str:
    """What a key means: in its own place; with another option of its group, where a recipe sets a key that the chosen
    one does not have; or as one of the pairs of names and values that the key above holds."""
    above, group = key.rpartition(".")[0], key.partition(".")[0]
    if own := one.sources.meaning(key, one.target(above)):
        return own
    picked, other = one.sources.choices.get(group), elsewhere(key)
    if other and other != picked:
        there = Sources({**one.sources.choices, group: other}, "", one.sources.folders)
        said = there.meaning(key, there.target(above))
        return f"{group}={picked} has no such key, and the check refuses it. With {group}={other} it is {said}"
    if above and not one.target(above) and (found := meaning(one, above)):
        return f"a part of {above}: {found}"
    return ""


def _of_value(key: str, one: Configuration) -> str:
    """The report on a key that holds a value."""
    default, path = one.sources.default(key)
    written = one.raw.get(key, default)
    rows = [("value", _value(key, one))]
    if path is not None:
        rows.append(("default", f"{shown(secret.recorded({'': default})[''])}, from {_name(path)}"))
    rows += [("follows", text) for text in mentions.followed(written, one.values)]
    followers = mentions.followers(key, one.raw)
    if followers:
        rows.append(("followed by", ", ".join(followers)))
    rows += [("type", kind)] if (kind := type_of(one, key)) else []
    if readers := _readers(key, one, followers):
        rows.append(("read by", readers))
    rows += _table(key, one)
    if page := mentions.page(key):
        rows.append(("see", page))
    return f"{key}\n\n{paragraph(meaning(one, key) or 'No yaml says what it means.')}\n\n{facts(rows)}"


def _of_node(key: str, one: Configuration) -> str:
    """The report on a group, or on a node with keys of its own."""
    rows, sources = [], one.sources
    if key in sources.choices:
        picked = sources.chain(key, sources.choices[key])
        rows.append(("option", f"{sources.choices[key]}: {read(picked[0]).heading if picked else ''}".rstrip(": ")))
    if target := one.target(key):
        rows.append(("class", _described(target)))
    plain = one.plain(key)
    inner = [(name, _short(plain[name]), first_sentence(meaning(one, f"{key}.{name}"))) for name in plain]
    parts = [key, paragraph(meaning(one, key) or "No yaml says what it means."), *([facts(rows)] if rows else [])]
    parts.append("  keys\n" + listing([row for row in inner if row[0] not in HYDRAS]))
    if key in sources.choices:
        names = groups().get(key, [])
        headings = [first_sentence(read(folder() / key / f"{name}.yaml").heading) for name in names]
        rows_of_options = list(zip(names, [""] * len(names), headings, strict=True))
        parts.append(f"  options, chosen by {key}=NAME\n" + listing(rows_of_options))
    return "\n\n".join(parts)


def _recipes() -> str:
    names = groups()["experiment"]
    headings = [first_sentence(read(folder() / "experiment" / f"{name}.yaml").heading) for name in names]
    said = "A recipe chooses the options of groups and sets values: +experiment=NAME."
    return "\n\n".join(["experiment", f"  {said}", listing(list(zip(names, [""] * len(names), headings, strict=True)))])


def _value(key: str, one: Configuration) -> str:
    """The value of a key, and who says so."""
    above = key.split(".")
    places = [".".join(above[:end]) for end in range(len(above), 0, -1)]
    if key not in one.values:
        off = next((place for place in places if place in one.values), "")
        return f"none, since {off} is {shown(one.values.get(off))} here"
    value = shown(one.values[key])
    if any(place in one.typed for place in places):
        return f"{value}, as typed"
    path = one.sources.of_recipe(key)[1]
    return f"{value}, from {_name(path)}" if path else f"{value}, the default"


def type_of(one: Configuration, key: str) -> str:
    """The type of a key's value in words: what the constructor wants, or `Settings`; "" where neither says."""
    node, _, last = key.rpartition(".")
    if last in HYDRAS:
        return {"_target_": "the dotted name of a class", "_partial_": "true or false"}[last]
    if not node:
        return describe(get_type_hints(Settings)[key]) if key in Settings.__annotations__ else ""
    found = declared(one.target(node))
    return describe(found.hints[last]) if found is not None and last in found.hints else ""


def _readers(key: str, one: Configuration, followers: Sequence[str]) -> str:
    """Who reads a key: the class of its node, or of a setting the modules that name it and the nodes that follow it."""
    if node := key.rpartition(".")[0]:
        while node and not one.target(node):
            node = node.rpartition(".")[0]
        return _described(one.target(node)) if node else ""
    classes = [one.target(follower.rpartition(".")[0]) for follower in followers]
    return ", ".join(dict.fromkeys([*mentions.modules(key), *filter(None, classes)]))


def _described(target: str) -> str:
    found = declared(target)
    return f"{target}: {found.summary}" if found is not None and found.summary else target


def _table(key: str, one: Configuration) -> Iterator[tuple[str, str]]:
    """The values of recipes that differ from the default, each with the recipes' names."""
    if key in _OWN_IN_EACH or key.rpartition(".")[2] in HYDRAS:
        return
    default, found = one.sources.default(key)[0], dict[str, list[str]]()
    for name, value in recipes(key, one.target(key.rpartition(".")[0])):
        if value != default and not isinstance(value, dict):
            found.setdefault(shown(value), []).append(name)
    for number, (value, names) in enumerate(list(found.items())[:_MOST]):
        whom = "all" if len(names) == len(groups()["experiment"]) else ", ".join(names)
        yield "" if number else "in recipes", f"{value}: {whom}"
    if len(found) > _MOST:
        yield "", f"and {len(found) - _MOST} values more"


def _short(value: Any) -> str:
    return "…" if isinstance(value, dict) else shown(value)


def _name(path: Path) -> str:
    """A yaml file as it is spoken of."""
    return f"conf/{path.relative_to(folder())}" if path.is_relative_to(folder()) else str(path)


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data by dotted key, nodes included."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        found[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
    return found
