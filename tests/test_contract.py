"""The contract between encoders and objectives: every pair of the configuration, at its smallest.

A new encoder or objective joins by its yaml and a line in `SMALL`.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from omegaconf import DictConfig

from pretrain.assemble import instantiate, materialise, objective_of
from pretrain.config.overrides import composed, folder
from pretrain.encoder.encoder import Encoder
from pretrain.objective.objective import Objective
from pretrain.optim.groups import decay_groups
from pretrain.plan import cost
from pretrain.records import Batch, Progress, Randomness, UserError

# what makes a family small; by the name of the class
SMALL = {
    "ViT": ["encoder.patch_size=8", "encoder.embed_dim=24", "encoder.depth=2", "encoder.num_heads=2"],
    "Hiera": [
        "encoder.embed_dim=8",
        "encoder.num_heads=1",
        "encoder.stages=[1,1,1,1]",
        "encoder.patch_kernel=3",
        "encoder.patch_stride=1",
        "encoder.patch_padding=1",
        "encoder.q_pool=2",
        "encoder.multi_scale_fusion=true",
    ],
    "DINO": [
        "objective.head.prototypes=24",
        "objective.head.hidden_dim=32",
        "objective.head.bottleneck_dim=8",
        "objective.local_view.size=16",
        "objective.local_view.count=2",
        "objective.freeze_last_layer=0",
    ],
    "MAE": ["objective.decoder.embed_dim=16", "objective.decoder.depth=2", "objective.decoder.num_heads=2"],
}
PROGRESS = Progress(0, 10, 5)


def family(group: str, name: str) -> str:
    return str(composed([f"{group}={name}"])[group]["_target_"]).rpartition(".")[2]


def first_of_each(group: str) -> list[str]:
    """One option of each class of a group."""
    names = sorted(path.stem for path in (folder() / group).glob("*.yaml"))
    return [
        next(found)
        for _, found in itertools.groupby(sorted(names, key=lambda n: family(group, n)), lambda n: family(group, n))
    ]


PAIRS = list(itertools.product(first_of_each("encoder"), first_of_each("objective")))


def config(encoder: str, objective: str, *extra: str) -> DictConfig:
    words = [f"encoder={encoder}", f"objective={objective}", "encoder.img_size=32", "encoder.drop_path=0.5"]
    return composed([*words, *SMALL[family("encoder", encoder)], *SMALL[family("objective", objective)], *extra])


def batch_for(objective: Objective, count: int = 3, device: str = "cpu") -> Batch:
    torch.manual_seed(0)
    views = tuple(
        torch.randn(view.count, count, len(view.mean), *view.height_width, device=device) for view in objective.views
    )
    return Batch(views, torch.arange(count, device=device), torch.full((count,), -1), [""] * count, seed=4)


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def objective(pair: tuple[str, str]) -> Objective:
    return materialise(objective_of(config(*pair)), seed=0).train()


def test_the_loss_is_finite_and_gradients_reach_what_is_trained_and_nothing_else(objective: Objective) -> None:
    loss = objective(batch_for(objective), PROGRESS).loss
    assert loss.ndim == 0
    assert loss.isfinite()
    loss.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    reached = [one.grad.abs().sum() > 0 for one in objective.trained_encoder.parameters() if one.grad is not None]
    assert sum(reached) > 0.9 * len(reached)  # queries that none asks may keep a zero


def test_a_sample_has_the_same_loss_whatever_its_batch(objective: Objective) -> None:
    batch = batch_for(objective)
    together = objective(batch, PROGRESS).loss
    alone = [
        objective(
            Batch(tuple(v[:, i : i + 1] for v in batch.views), batch.g[i : i + 1], batch.labels[i : i + 1], [""], 4),
            PROGRESS,
        ).loss
        for i in range(3)
    ]
    torch.testing.assert_close(torch.stack(alone).mean(), together)


def test_built_on_the_meta_device_it_has_the_weights_of_its_seed_alone(pair: tuple[str, str]) -> None:
    built = objective_of(config(*pair))
    assert all(parameter.is_meta for parameter in built.parameters())
    states = [materialise(objective_of(config(*pair)), seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert all(value.isfinite().all() for value in states[0].values())


def test_the_cost_is_counted_without_computing(pair: tuple[str, str]) -> None:
    built = objective_of(config(*pair))
    assert cost(built, built.trained_encoder, batch_for(built, 1, "meta")).flops > 0


def test_units_and_exemptions_name_what_is_there(objective: Objective) -> None:
    modules = set(objective.modules())
    units = objective.fsdp_units()
    assert units
    assert all(unit in modules for unit in units)
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    encoder = objective.trained_encoder
    mine = {id(dict(encoder.named_parameters())[name]) for name in encoder.no_decay()}
    exempt = decay_groups(objective, objective.no_decay())[1]["params"]
    assert objective.no_decay() <= trained
    assert mine <= {id(parameter) for parameter in exempt}  # what the encoder asks for reaches the optimizer


def test_state_survives_and_evaluation_needs_no_keys(pair: tuple[str, str], objective: Objective) -> None:
    again = objective_of(config(*pair)).to_empty(device="cpu")
    again.load_state_dict(objective.state_dict(), strict=True)
    objective.eval()
    again.eval()
    batch = batch_for(objective)
    assert torch.equal(objective(batch, PROGRESS).loss, again(batch, PROGRESS).loss)
    pictures = objective.illustrate(batch)
    assert pictures
    assert all(picture.dtype == torch.uint8 and picture.shape[1] == 3 * 32 for picture in pictures.values())


# ── encoders alone ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=first_of_each("encoder"))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    built: Encoder = instantiate(config(request.param, "mae").encoder)
    return built.eval()


def test_masked_pixels_cannot_alter_visible_features(encoder: Encoder) -> None:
    torch.manual_seed(0)
    unit, images = encoder.mask_unit, torch.randn(2, 3, 32, 32)
    columns = 32 // unit
    for _ in range(8):
        visible = torch.stack([torch.randperm(columns**2)[:5] for _ in range(2)])
        changed = torch.full_like(images, float("nan"))
        for sample, one in itertools.product(range(2), range(5)):
            row, column = divmod(int(visible[sample, one]), columns)
            square = (
                sample,
                slice(None),
                slice(row * unit, row * unit + unit),
                slice(column * unit, column * unit + unit),
            )
            changed[square] = images[square]
        expected, got = encoder(images, visible), encoder(changed, visible)
        assert torch.equal(got.patches, expected.patches)
        assert expected.patches.shape == (2, 5 * (unit // encoder.token_size) ** 2, encoder.embed_dim)
        assert (got.cls is None) == (not encoder.has_cls)


def test_images_need_not_be_square(encoder: Encoder) -> None:
    height, width = 2 * encoder.mask_unit, 3 * encoder.mask_unit
    tokens = encoder(torch.randn(2, 3, height, width))
    assert tokens.grid == (height // encoder.token_size, width // encoder.token_size)
    assert tokens.patches.shape == (2, tokens.grid[0] * tokens.grid[1], encoder.embed_dim)
    last = encoder.intermediate(torch.randn(1, 3, height, width), [-1])
    assert last[0].grid == tokens.grid
    maps = encoder.feature_maps(torch.randn(1, 3, height, width))
    assert len(maps) == 4
    assert all(one.shape[2] * width == one.shape[3] * height for one in maps)


def test_views_of_several_sizes_and_their_keys(encoder: Encoder) -> None:
    encoder.train()
    unit = encoder.mask_unit
    views = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, unit, unit)]
    keys = [Randomness(0, torch.arange(2)), Randomness(0, torch.arange(3) + 2**48)]
    tokens = encoder.forward_views(views, keys)
    torch.testing.assert_close(tokens[1].patches, encoder(views[1], randomness=keys[1]).patches)


def test_after_pretraining_it_has_the_same_weights(encoder: Encoder) -> None:
    """What is exported is built anew with other arguments, and every weight that it has comes from training."""
    name = type(encoder).__name__
    names = {family("encoder", option): option for option in first_of_each("encoder")}
    arguments = dict(config(names[name], "mae").encoder) | encoder.after_pretraining
    rebuilt: Encoder = instantiate(arguments)
    report = rebuilt.load_state_dict(encoder.state_dict(), strict=False)  # raises where shapes differ
    assert not report.missing_keys
    images = torch.randn(1, 3, 32, 32)
    if not report.unexpected_keys and rebuilt.token_size == encoder.token_size:
        assert torch.equal(rebuilt.eval()(images).patches, encoder(images).patches)


# ── pairs that cannot work ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("encoder", "extra", "reason"),
    [
        ("vit_base", ["objective.view.size=36"], "a view of 36×36 pixels cannot be cut into mask units of 8"),
        ("hiera_tiny", ["objective.view.size=36"], "a view of 36×36 pixels cannot be cut into mask units of 8"),
        ("hiera_tiny", ["encoder.img_size=8"], "is a single mask unit: nothing can be hidden"),
        ("hiera_tiny", ["encoder.in_chans=4"], r"images have 3 channels, but `encoder\.in_chans` is 4"),
    ],
)
def test_pairs_that_cannot_work_say_why_before_anything_is_built(encoder: str, extra: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        objective_of(config(encoder, "mae", *extra))
