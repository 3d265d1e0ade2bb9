"""What masking saves: counted on tiny encoders against the arithmetic, and as the documents state it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.count import operations
from pretrain.encoder.encoder import Encoder
from pretrain.encoder.hiera import Hiera
from pretrain.encoder.vit import ViT
from pretrain.nn.attention import attend
from pretrain.plan import Masking, empty_batch, masking
from tests.hiera import SMALL
from tests.scripts import FOLDER, loaded, run_script

DOCS = FOLDER.parent / "docs"
WIDTH, DEPTH = 24, 2


def vit(**arguments: Any) -> ViT:
    with torch.device("meta"):
        return ViT(img_size=16, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=3, **arguments)


def hiera(**arguments: Any) -> Hiera:
    with torch.device("meta"):
        return Hiera(**SMALL | arguments)


def count(encoder: Encoder, visible: int) -> Masking:
    units = encoder.img_size[0] * encoder.img_size[1] // encoder.mask_unit**2
    ids = torch.empty(1, units, dtype=torch.int64, device="meta")
    return masking(encoder, empty_batch([(1, 3, *encoder.img_size)]), ids[:, :visible], ids[:, visible:])


def embedding_first(encoder: Encoder) -> None:
    """Makes an encoder project the whole image and drop what is hidden afterwards, as the originals do."""
    embed: Any = encoder._embed

    def whole(images: Tensor, visible_ids: Tensor | None) -> Any:
        if visible_ids is None:
            return embed(images, None)
        samples = torch.arange(len(images), device=images.device)[:, None]
        if not isinstance(encoder, ViT):
            return embed(images, None)[samples, visible_ids]
        x, grid = embed(images, None)
        return torch.cat([x[:, :1], x[:, 1:][samples, visible_ids]], dim=1), grid

    encoder._embed = whole  # type: ignore[method-assign, assignment, operator]


def attention(tokens: int) -> int:
    """Operations of one block's attention, as torch counts them."""
    q, k, v = torch.empty(3, 1, tokens, 3, WIDTH // 3, device="meta", requires_grad=True).unbind()
    return operations(lambda: attend(q, k, v))


@pytest.mark.parametrize("visible", [1, 4, 15])
def test_a_masked_vit_costs_what_its_visible_patches_cost(visible: int) -> None:
    """A multiply-add is two operations; back, a linear map costs one product for its weight and one for its input."""

    def expected(patches: int) -> int:
        embedding = 2 * 2 * patches * (3 * 4 * 4) * WIDTH  # images have no gradient
        linear = 3 * 2 * (1 + patches) * 12 * WIDTH**2  # query, key, value: 3; output: 1; MLP: 4 + 4
        return embedding + DEPTH * (linear + attention(1 + patches))

    counts = count(vit(), visible)
    assert counts.masked == expected(visible)
    assert counts.unmasked == expected(16)
    assert counts.embedding == 2 * 2 * 16 * (3 * 4 * 4) * WIDTH
    cls = expected(1) - (expected(2) - expected(1))  # does not depend on masking
    assert counts.masked <= counts.visible * counts.unmasked + cls
    assert counts.visible == visible / 16


@pytest.mark.parametrize("visible", [1, 6, 15])
@pytest.mark.parametrize("options", [{}, {"q_pool": 2, "multi_scale_fusion": True, "drop_path": 0.5}])
def test_a_masked_hiera_costs_what_its_visible_units_cost(visible: int, options: dict[str, Any]) -> None:
    windows = count(hiera(mask_unit_attn=(True,) * 4, **options), visible)
    assert windows.masked == windows.visible * windows.unmasked  # where units never meet, to the last operation
    counts = count(hiera(**options), visible)
    assert counts.masked < counts.visible * counts.unmasked  # attention over the image grows with its square


@pytest.mark.parametrize("make", [vit, hiera, lambda: hiera(mask_unit_attn=(True,) * 4)])
def test_the_other_way_is_counted_as_if_it_were_done(make: Any) -> None:
    counts = count(make(), 4)
    encoder = make()
    embedding_first(encoder)
    assert count(encoder, 4).masked == counts.embedded_whole > counts.masked


def test_the_script_tabulates_recipes_and_writes_the_same_numbers(tmp_path: Path) -> None:
    small = ["encoder.img_size=64", "objective.decoder.depth=1"]
    out = tmp_path / "flops.json"
    result = run_script("flops", "experiments=[mae_vitb,mae_hiera_tiny]", *small, f"out={out}")
    assert result.returncode == 0, result.stderr
    written = json.loads(out.read_text())
    assert written["run"]["overrides"] == small
    assert (written["mae_vitb"]["visible"], written["mae_hiera_tiny"]["visible"]) == (4 / 16, 1 / 4)
    for name in ("mae_vitb", "mae_hiera_tiny"):
        assert written[name]["masked"] < written[name]["embedded_whole"] < written[name]["unmasked"]
        assert written[name]["masked"] < written[name]["step"]
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["mae_vitb", "mae_hiera_tiny"]
    alone = run_script("flops", "+experiment=mae_vitb", *small)
    assert alone.stdout.splitlines() == lines[:3]


def test_a_recipe_that_does_not_exist_is_refused() -> None:
    result = run_script("flops", "experiments=[mae_vitbb]", "encoder.depht=1")
    assert result.returncode == 1
    assert "experiment=mae_vitbb: there is no such option" in result.stderr
    assert "did you mean encoder.depth?" in result.stderr


def test_the_documented_table_is_the_measured_one() -> None:
    row = loaded("flops")["row"]
    results = json.loads((DOCS / "measurements" / "flops.json").read_text())
    assert results.pop("run")["overrides"] == []
    page = (DOCS / "performance.md").read_text()
    assert all(row(name, counts) in page for name, counts in results.items())
