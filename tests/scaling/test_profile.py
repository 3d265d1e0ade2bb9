"""What is read off objectives, against arithmetic."""

from __future__ import annotations

import functools

import torch
from omegaconf import DictConfig

from pretrain.assemble import objective_of
from pretrain.config.overrides import composed
from pretrain.objective.objective import Objective
from pretrain.plan import cost, empty_batch
from pretrain.records import Batch
from pretrain.scaling.profile import Group, Profile, profile

WIDTH = 8
VIT = ["encoder.img_size=16", "encoder.patch_size=4", f"encoder.embed_dim={WIDTH}"]
VIT += ["encoder.depth=2", "encoder.num_heads=2"]
DECODER = ["objective.decoder.embed_dim=8", "objective.decoder.depth=1", "objective.decoder.num_heads=2"]
HEAD = ["objective.head.prototypes=6", "objective.head.hidden_dim=10", "objective.head.bottleneck_dim=4"]
VIEWS = ["objective.global_view.size=16", "objective.local_view.size=8", "objective.local_view.count=3"]
MAE = ["+experiment=mae_vits", *VIT, *DECODER, "objective.view.size=16"]
DINO = ["+experiment=dino_vits16", *VIT, *HEAD, *VIEWS]


@functools.cache
def configuration(*overrides: str) -> DictConfig:
    return composed(list(overrides))


def small(overrides: list[str]) -> tuple[Objective, Batch]:
    objective = objective_of(configuration(*overrides))
    return objective, empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)


@functools.cache
def profile_of(*overrides: str) -> Profile:
    return profile(*small(list(overrides)))


def by_name(found: Profile) -> dict[str, Group]:
    return {group.name: group for group in found.groups}


def numbers(shapes: tuple[tuple[int, ...], ...]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def block(width: int) -> int:
    """Numbers of a transformer block: query, key and value, output, MLP with biases, and two norms."""
    return 12 * width**2 + (3 + 1 + 4 + 1) * width + 2 * 2 * width


def test_a_masked_autoencoder() -> None:
    """Blocks by themselves, the encoder without them with its frozen table, and the rest of the decoder."""
    groups = by_name(profile_of(*MAE))
    assert [name for name, group in groups.items() if group.unit] == [
        "encoder.blocks.0",
        "encoder.blocks.1",
        "decoder.blocks.0",
    ]
    for name in ("encoder.blocks.1", "decoder.blocks.0"):
        assert numbers(groups[name].shapes) == numbers(groups[name].trained) == block(WIDTH)
        assert (groups[name].forward, groups[name].backward) == (1, 1)
    table, embedding = 17 * WIDTH, (3 * 4 * 4 + 1) * WIDTH + WIDTH + 2 * WIDTH  # patches, class token, norm
    assert numbers(groups["encoder"].shapes) == table + embedding
    assert numbers(groups["encoder"].trained) == embedding
    assert (groups["encoder"].forward, groups["encoder"].backward) == (1, 1)
    assert numbers(groups[""].trained) == (8 + 1) * 8 + 8 + 2 * 8 + (8 + 1) * 48  # into it, mask token, norm, pixels
    assert (groups[""].forward, groups[""].backward) == (1, 0)  # kept from the forward to the backward pass


def test_dino_runs_the_student_for_each_size_of_views_and_the_teacher_once() -> None:
    """The prototypes' lengths, which vits16 trains, and their directions are the objective's own."""
    groups = by_name(profile_of(*DINO))
    passes = {name: (group.forward, group.backward) for name, group in groups.items()}
    assert passes["student.encoder.blocks.1"] == (2, 2)
    assert passes["student.encoder"] == (2, 1)  # images have no gradient: it is kept until all is done
    assert passes["student.head.mlp"] == (1, 1)
    assert passes["teacher.encoder.blocks.1"] == passes["teacher.encoder"] == passes["teacher.head.mlp"] == (1, 0)
    assert all(group.trained == () for name, group in groups.items() if name.startswith("teacher"))
    assert numbers(groups[""].trained) == 6 + 6 * 4
    assert numbers(groups[""].shapes) == 2 * (6 + 6 * 4)
    assert groups["student.encoder.blocks.0"].shapes == groups["teacher.encoder.blocks.0"].shapes


def test_frozen_prototypes_have_no_gradient() -> None:
    groups = by_name(profile_of(*DINO, "objective.head.norm_last_layer=true"))
    assert numbers(groups[""].trained) == 6 * 4


def test_operations_are_those_of_the_plan() -> None:
    for overrides in (MAE, [*DINO, "objective.freeze_last_layer=0"]):  # the plan is one of a run's first step
        objective, batch = small(overrides)
        found = profile(objective, batch)
        assert all(parameter.grad is None for parameter in objective.parameters())
        assert found.forward + found.backward == cost(objective, objective.trained_encoder, batch).flops


def test_what_would_run_again_are_the_blocks_that_a_gradient_passes() -> None:
    """Linear maps of two blocks on 5 visible tokens and a block of the decoder on 17, its last norms and MLP for the 12
    masked ones alone, and attention, 4 operations a pair and channel; a multiply-add is two."""
    found = profile_of(*MAE)

    def linear(tokens: int, queries: int) -> int:
        return 2 * WIDTH**2 * (2 * tokens + 10 * queries)

    attention = 4 * WIDTH * (2 * 5 * 5 + 12 * 17)
    assert found.recomputed == 2 * linear(5, 5) + linear(17, 12) + attention
    student = profile_of(*DINO)
    tokens = [2 * 17, 3 * 5]  # two global and three local views; the teacher is not run again
    maps = 2 * sum(linear(count, count) for count in tokens)
    head = 2 * 5 * (WIDTH * 10 + 10 * 10 + 10 * 4)
    assert student.recomputed == maps + head + 2 * 4 * WIDTH * (2 * 17 * 17 + 3 * 5 * 5)
