"""The official Hiera autoencoder's own weights, images and noise: latent, prediction, labels, loss and gradients."""

from __future__ import annotations

import pytest
import torch

from pretrain.interop.official import hiera_mae_from_official, hiera_mae_to_official
from pretrain.nn.patch import patchify
from pretrain.objective.mae import MAE
from pretrain.objective.masking import split_by_noise
from tests.conftest import Golden, close
from tests.hiera import mae_from_golden

pytestmark = pytest.mark.parametrize("golden", ["hiera_mae"], indirect=True)


def build(golden: Golden) -> MAE:
    mae = mae_from_golden(golden.config)
    mae.load_state_dict(hiera_mae_from_official(golden.state("model.")), strict=True)
    return mae


def ids(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    return split_by_noise(golden["noise"], golden.config["mask_ratio"])


def test_golden_mask(golden: Golden) -> None:
    visible, masked = ids(golden)
    keep = golden["keep_mask"].bool()
    assert keep.gather(1, visible).all()
    assert not keep.gather(1, masked).any()
    assert visible.shape[1] + masked.shape[1] == keep.shape[1]


def test_golden_latent(golden: Golden) -> None:
    mae, (visible, _) = build(golden), ids(golden)
    ordered = visible.sort(dim=1).values  # the original keeps visible units in raster order
    tokens = mae.encoder(golden["images"], ordered)
    assert close(tokens.patches, golden["latent"].flatten(1, 3))


def test_golden_prediction_and_labels(golden: Golden) -> None:
    mae, (visible, masked) = build(golden), ids(golden)
    images = golden["images"]
    rows = mae._token_ids(images, masked).sort(dim=1).values  # masked tokens row by row, as the original lists them
    prediction = mae.reconstruct(images, visible, masked)
    samples = torch.arange(len(images))[:, None]
    assert close(prediction[samples, rows].flatten(0, 1), golden["pred_masked"])
    labels = patchify(images, mae.encoder.token_size, rows, mae.pixel_order)
    mean, scale = mae._pixel_statistics(labels)
    assert close(((labels - mean) / scale).flatten(0, 1), golden["label_masked"])


def test_golden_loss(golden: Golden) -> None:
    loss = build(golden).loss(golden["images"], *ids(golden))
    assert abs(loss.item() / golden["loss"].item() - 1) <= 1e-5


def test_golden_gradients(golden: Golden) -> None:
    mae = build(golden)
    mae.loss(golden["images"], *ids(golden)).backward()
    gradients = {name: parameter.grad for name, parameter in mae.named_parameters()}
    expected = hiera_mae_from_official(golden.state("grad."))
    assert expected
    for name, gradient in expected.items():
        assert close(gradients[name], gradient), name


def test_golden_state_survives_the_round_trip(golden: Golden) -> None:
    official = golden.state("model.")
    again = hiera_mae_to_official(build(golden).state_dict())
    assert again.keys() == official.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in official.items())
