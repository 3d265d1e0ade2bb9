"""Times a training step (forward, loss, backward) of MAE against other implementations of the same model, in one run.

    python scripts/bench_step.py +experiment=mae_vitb trainer=cpu batch=8 out=bench.json
    python scripts/bench_step.py +experiment=mae_hiera_tiny trainer=cpu batch=8 out=bench.json

The variants take turns, so that a noisy machine slows all of them alike; a ratio is taken round by round, and its
median, least and greatest are reported. Baselines of a ViT: transformers' ViTMAEForPreTraining and lightly's MAE, both
with torch's fused attention; of a Hiera: transformers' HieraForPreTraining, which has plain attention alone (extras
`interop` and `bench`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from pretrain.assemble import instantiate, materialise, objective_of
from pretrain.config.arguments import script
from pretrain.config.check import composed_without_data
from pretrain.records import Batch, Progress, UserError

Step = Callable[[Tensor], Tensor]  # normalised images [B, 3, H, W] → loss


@dataclass(frozen=True)
class Arguments:
    batch: int = 8
    rounds: int = 9
    out: str | None = None


def ours(cfg: DictConfig, device: torch.device) -> Step:
    objective = materialise(objective_of(cfg), seed=0, device=device)

    def step(images: Tensor) -> Tensor:
        g = torch.arange(len(images), device=images.device)
        return objective(Batch((images[None],), g, g, [], 0), Progress(0, 1, 1)).loss

    return step


def vit_mae(cfg: DictConfig) -> Any:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = cfg.encoder, cfg.objective.decoder
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=encoder.img_size,
            patch_size=encoder.patch_size,
            hidden_size=encoder.embed_dim,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.num_heads,
            intermediate_size=int(encoder.embed_dim * encoder.mlp_ratio),
            decoder_hidden_size=decoder.embed_dim,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.num_heads,
            decoder_intermediate_size=int(decoder.embed_dim * decoder.mlp_ratio),
            mask_ratio=cfg.objective.mask_ratio,
            norm_pix_loss=cfg.objective.norm_pix_loss,
            layer_norm_eps=encoder.norm_eps,
            attn_implementation="sdpa",
        )
    )


def hiera_mae(cfg: DictConfig) -> Any:
    """It always fuses stages and gives the decoder the encoder's `mlp_ratio`, as our recipes do."""
    from transformers import HieraConfig, HieraForPreTraining

    encoder, decoder = cfg.encoder, cfg.objective.decoder
    return HieraForPreTraining(
        HieraConfig(
            image_size=[encoder.img_size] * 2,
            embed_dim=encoder.embed_dim,
            depths=list(encoder.stages),
            num_heads=[encoder.num_heads * 2**stage for stage in range(len(encoder.stages))],
            num_query_pool=encoder.q_pool,
            masked_unit_size=[encoder.mask_unit_size] * 2,
            masked_unit_attention=list(encoder.mask_unit_attn),
            patch_size=[encoder.patch_kernel] * 2,
            patch_stride=[encoder.patch_stride] * 2,
            patch_padding=[encoder.patch_padding] * 2,
            mlp_ratio=encoder.mlp_ratio,
            drop_path_rate=encoder.drop_path,
            layer_norm_eps=encoder.norm_eps,
            decoder_hidden_size=decoder.embed_dim,
            decoder_depth=decoder.depth,
            decoder_num_heads=decoder.num_heads,
            mask_ratio=cfg.objective.mask_ratio,
            normalize_pixel_loss=cfg.objective.norm_pix_loss,
        )
    )


def transformers(make: Callable[[DictConfig], Any], cfg: DictConfig, device: torch.device) -> Step:
    model = make(cfg).to(device).train()
    return lambda images: model(pixel_values=images).loss


def lightly(cfg: DictConfig, device: torch.device) -> Step:
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    encoder, sizes = cfg.encoder, cfg.objective.decoder
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    vit = MaskedVisionTransformerTIMM(VisionTransformer(**{name: encoder[name] for name in names}, num_classes=0))
    decoder: Any = MAEDecoderTIMM(
        num_patches=(encoder.img_size // encoder.patch_size) ** 2,
        patch_size=encoder.patch_size,
        embed_dim=encoder.embed_dim,
        decoder_embed_dim=sizes.embed_dim,
        decoder_depth=sizes.depth,
        decoder_num_heads=sizes.num_heads,
        mlp_ratio=sizes.mlp_ratio,
    )
    vit.to(device).train()
    decoder.to(device).train()

    def step(images: Tensor) -> Tensor:
        size = (len(images), vit.sequence_length)
        keep, mask = utils.random_token_mask(size=size, mask_ratio=cfg.objective.mask_ratio, device=images.device)
        encoded = decoder.embed(vit.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        prediction = decoder.predict(utils.get_at_index(decoder.decode(tokens), mask))
        target = utils.get_at_index(utils.patchify(images, encoder.patch_size), mask - 1)
        return F.mse_loss(prediction.float(), utils.normalize_mean_var(target))

    return step


BASELINES: dict[str, dict[str, Callable[[DictConfig, torch.device], Step]]] = {
    "pretrain.encoder.vit.ViT": {"transformers": partial(transformers, vit_mae), "lightly": lightly},
    "pretrain.encoder.hiera.Hiera": {"transformers": partial(transformers, hiera_mae)},
}


def main(arguments: Arguments, overrides: list[str]) -> None:
    cfg = composed_without_data(overrides, hardware=True)
    if cfg.encoder._target_ not in BASELINES:
        raise UserError(f"encoder._target_={cfg.encoder._target_}: nothing to compare with; one of {list(BASELINES)}")
    hardware = instantiate(cfg.trainer)
    device, size = hardware.device, cfg.encoder.img_size
    images = torch.randn(arguments.batch, 3, size, size, device=device)
    variants = {"pretrain": ours} | BASELINES[cfg.encoder._target_]
    steps = {name: make(cfg, device) for name, make in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds + 1):
        for name, step in steps.items():
            times[name].append(timed(step, images, hardware.dtype))
    result: dict[str, Any] = {}
    for name, (_, *rounds) in times.items():  # the first warms up
        speed = arguments.batch / statistics.median(rounds)
        ratios = [ours / theirs for ours, theirs in zip(times["pretrain"][1:], rounds, strict=True)]
        ratio = {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
        result[name] = {"images_per_second": speed, "ratio": ratio}
        print(
            f"{name:13s} {speed:9.2f} images/s   {ratio['median']:.2f} of ours "
            f"({ratio['least']:.2f} to {ratio['greatest']:.2f})"
        )
    result["run"] = {"batch": arguments.batch, "rounds": arguments.rounds, "overrides": overrides}
    result["run"] |= {"device": str(device), "precision": hardware.precision}
    result["run"] |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if arguments.out is not None:
        Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timed(step: Step, images: Tensor, dtype: torch.dtype) -> float:
    """Seconds of one forward and backward pass."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = step(images)
    loss.backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)
