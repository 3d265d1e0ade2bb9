"""Nodes become objects as Hydra builds them, but of classes alone, and a refusal comes out as it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hydra import utils
from omegaconf import OmegaConf

from pretrain.assemble import objective_of
from pretrain.config.instantiate import instantiate
from pretrain.config.nodes import check_nodes
from pretrain.config.overrides import composed
from pretrain.records import UserError
from pretrain.view.spec import ViewSpec


class Kept:
    """Keeps what it is given."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and plainly(self.given) == plainly(other.given)

    __hash__ = object.__hash__


def plainly(value: Any) -> Any:
    """What can be compared: a partial by what it holds, and each value with its type."""
    if isinstance(value, partial):
        return "partial", value.func, plainly(value.keywords)
    if isinstance(value, dict):
        return {key: plainly(one) for key, one in value.items()}
    return [plainly(one) for one in value] if isinstance(value, list) else (type(value), value)


KEPT = {"_target_": f"{__name__}.Kept"}
NODES = [
    KEPT | {"a": 1, "b": None, "c": 1e-5, "d": "text", "e": True},
    KEPT | {"a": [1, [2, {"x": 3}]], "b": {"y": {"z": []}}},
    KEPT | {"a": KEPT | {"b": KEPT | {"c": 1}}},
    KEPT | {"a": [{"b": KEPT | {"c": 1}}], "d": {"e": [KEPT]}},
    KEPT | {"_partial_": True, "a": KEPT | {"_partial_": True, "b": KEPT}},
    KEPT | {"_recursive_": False, "a": KEPT | {"b": KEPT}, "c": [KEPT]},
    {"a": KEPT | {"b": 1}, "c": [KEPT]},
    [KEPT, 1, "text"],
    {},
    [],
    None,
]


@pytest.mark.parametrize("node", NODES, ids=range(len(NODES)))
def test_the_same_is_built_as_hydra_builds(node: Any) -> None:
    expected = plainly(utils.instantiate(node, _convert_="all"))
    assert plainly(instantiate(node)) == expected
    assert plainly(instantiate(OmegaConf.create({"x": node}).x)) == expected


def test_parts_of_a_configuration_are_resolved_and_become_plain() -> None:
    cfg = OmegaConf.create({"top": 3, "x": KEPT | {"a": "${top}", "b": ["${x.a}", "of ${top}"], "c": {"d": "${top}"}}})
    found = instantiate(cfg.x)
    assert found == Kept(a=3, b=[3, "of 3"], c={"d": 3})
    assert type(found.given["b"]) is list
    assert type(found.given["c"]) is dict
    convert = KEPT | {"_convert_": "none", "a": [1]}
    assert type(instantiate(OmegaConf.create(convert)).given["a"]) is list


def test_what_a_constructor_refuses_comes_out_as_it_is() -> None:
    view = {"_target_": "pretrain.view.spec.ViewSpec", "size": 0}
    for node in (view, KEPT | {"a": [view]}):
        with pytest.raises(ValueError, match=r"^ViewSpec: `size` must be at least 1$"):
            instantiate(node)
    cfg = composed(["+experiment=mae_digits", "trainer=cpu"])
    cfg.encoder.img_size = 30
    with pytest.raises(UserError, match="`img_size`"):
        objective_of(cfg)


@pytest.mark.parametrize("target", ["os.system", "hydra.utils.instantiate", "torch.hub.load", "no.such.Class", "x", ""])
def test_nothing_but_classes_is_built(target: str) -> None:
    """Also where somebody forgot to check."""
    with pytest.raises(UserError, match=f"^_target_={target}: "):
        instantiate({"a": [KEPT | {"b": {"_target_": target}}]})


def test_recipes_are_built_of_plain_data() -> None:
    cfg: Any = OmegaConf.to_container(composed(["+experiment=dino_digits", "trainer=cpu"]), resolve=True)
    nodes = {key: cfg[key] for key in ("encoder", "objective", "optim")}
    assert check_nodes(nodes) == []
    objective = objective_of(nodes)
    assert all(isinstance(view, ViewSpec) for view in objective.views)
    optimizer = instantiate(cfg["optim"])([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
