"""Weights as the original repositories store them, in a `.pth` file for their own code.

facebookresearch/mae and facebookresearch/hiera keep encoder and decoder in one flat module, facebookresearch/dino keeps
`backbone` and `head` of a teacher and of a student; their encoders' names are ours. Every key is accounted for: what is
unknown is refused, and what an encoder alone leaves out is said.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pretrain.interop.card import Card, read, refuse_family, refuse_idea, refuse_others, refuse_unit
from pretrain.nn.position import sincos_2d
from pretrain.records import UserError
from pretrain.view.spec import pair

_DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    r"decoder_(embed|blocks|norm|pred)\.(.+)": r"decoder.\1.\2",
}
_VIT = {r"((?:cls_token|pos_embed|patch_embed\.proj\..+|blocks\..+|norm\..+))": r"encoder.\1"}
_HIERA = {
    r"((?:pos_embed|pos_embed_win|patch_embed\.proj\..+|blocks\..+|norm\..+))": r"encoder.\1",
    r"(multi_scale_fusion_heads\..+)": r"encoder.\1",
    r"encoder_norm\.(.+)": r"encoder.norm.\1",  # of the autoencoder, after fusion
}
_HEAD = r"head\.projection\.(?:weight|bias)"
_NAME = "model.pth"
_OUTER = {"ViT": "model", "Hiera": "model_state"}  # the key of the weights in a file


def refuse(card: Card) -> None:
    """Raises UserError if the original codes cannot say this."""
    refuse_family(card, _OUTER, "the original codes")
    hiera = card.family == "Hiera"
    wanted: dict[str, Any] = {"encoder.norm_eps": 1e-6}
    wanted |= {"encoder.position": "absolute"} if hiera else {"encoder.qkv_bias": True}
    if hiera:
        refuse_unit(card.encoder, "the original code")
    if card.part == "objective":
        refuse_idea(card, ["MAE", "DINO"], "the original codes")
    if card.part == "objective" and card.idea == "DINO":
        refuse_family(card, ["ViT"], "the original DINO")
        wanted |= {"encoder.position": "learned"}
        if card.objective is not None and card.objective["head"].get("nlayers") == 1:
            raise UserError("objective.head.nlayers=1: the original names a single layer otherwise; export the encoder")
    elif card.part == "objective":
        wanted |= {"objective.decoder.norm_eps": 1e-6, "objective.decoder.mlp_ratio": card.encoder["mlp_ratio"]}
        wanted |= {"objective.view.size": card.encoder["img_size"]}
        wanted |= {"objective.pixel_order": "chw" if hiera else "hwc"}
        wanted |= {"objective.decoder.position": "learned" if hiera else "fixed"}
        wanted |= {"encoder.multi_scale_fusion": True} if hiera else {"encoder.position": "fixed"}
    refuse_others(card, wanted, "the original code")


def fill(folder: Path, card: Card, model: nn.Module) -> None:
    """Writes the weights of an encoder, or of an objective, under the original names, in float32."""
    state = {key: tensor.detach().float().contiguous() for key, tensor in model.state_dict().items()}
    if card.part == "objective" and card.idea == "DINO":
        torch.save(dino_to_official(state), folder / _NAME)
    else:
        torch.save({_OUTER[card.family]: _to_official(card, state)}, folder / _NAME)


def to_ours(folder: Path) -> dict[str, Tensor]:
    """The encoder's state in an export."""
    card = read(folder)
    assert card is not None
    try:
        return from_official(card.family, load(folder / _NAME))[0]
    except ValueError as failure:
        raise UserError(f"`{folder}` is not what an export wrote: {failure}") from None


def load(path: Path) -> dict[str, Tensor]:
    """The weights in a file of an original repository, out of what they are wrapped in. Nothing in it is run.

    Raises:
        UserError: the file is not there, damaged, or holds something else.
    """
    content = _content(path)
    for key in (*_OUTER.values(), "state_dict", "teacher"):  # of DINO's two networks the one that is used
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(one, Tensor) for one in content.values()):
        raise UserError(f"`{path}` holds no weights: a table of names and tensors is expected")
    return content


def _content(path: Path) -> Any:
    """All that a file holds, as `load` reads it."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # their training runs store their arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as failure:
        raise UserError(f"`{path}` cannot be read: {failure.strerror or failure}") from None
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        SafetensorError,
    ):
        raise UserError(
            f"`{path}` cannot be read: it is damaged, no file of torch, or holds more than tensors and settings, which "
            "could run when it is read"
        ) from None


def from_official(family: str, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's state under our names, and the keys of heads, fusion and decoders, which are left out.

    Raises:
        ValueError: a key is unknown.
    """
    if family == "Hiera":
        return hiera_from_official(state)
    plain = {re.sub(r"^(?:module\.)?(?:backbone\.)?", "", key): tensor for key, tensor in state.items()}
    if len(plain) != len(state):
        raise ValueError("it holds names with and without `module.` or `backbone.`")
    if any(key.startswith("fc_norm.") for key in plain):
        raise ValueError("it is fine-tuned with a norm of its own after pooling (`fc_norm`), and has no final norm")
    left = [key for key in plain if key.startswith(("head.", "decoder_", "mask_token"))]
    ours = mae_from_official({key: tensor for key, tensor in plain.items() if key not in left})
    return {key.removeprefix("encoder."): tensor for key, tensor in ours.items()}, left


def ours(card: Card, model: nn.Module, images: Tensor) -> Tensor:
    """What `theirs` is compared with: all weights in one row, sorted by name. That they mean the same to the original
    code is shown by its own outputs, which our models equal.
    """
    return _row(model.state_dict())


def theirs(folder: Path, card: Card, images: Tensor) -> Tensor:
    """All weights that the file holds, under our names again, in one row."""
    if card.part == "objective" and card.idea == "DINO":
        return _row(dino_from_official(_content(folder / _NAME)))
    state = load(folder / _NAME)
    if card.part == "encoder":
        return _row(from_official(card.family, state)[0])
    return _row(hiera_mae_from_official(state) if card.family == "Hiera" else mae_from_official(state))


def _row(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[key].detach().float().flatten() for key in sorted(state)])


def _to_official(card: Card, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if card.part == "encoder":
        return state
    if card.family == "Hiera":
        return hiera_mae_to_official(state)
    side = card.encoder["patch_size"]
    height, width = pair(card.view["size"])
    return mae_to_official(state, (height // side, width // side))


def mae_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our `MAE` with a `ViT` from that of the official `MaskedAutoencoderViT`.

    Raises:
        ValueError: a key is unknown, or the fixed position table of the decoder is not the fixed table.
    """
    ours = _renamed(state, _VIT | _DECODER, "MAE")
    if (table := ours.pop("decoder.pos_embed", None)) is not None:
        _require_fixed_table(table)
    return ours


def mae_to_official(state: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The inverse of `mae_from_official`; `grid` is the (rows, columns) of patches the decoder's table is made for."""
    official = {_flat(key): tensor for key, tensor in state.items()}
    table = sincos_2d(grid, official["mask_token"].shape[-1])
    official["decoder_pos_embed"] = torch.cat([torch.zeros_like(table[:1]), table])[None]
    return official


def dino_from_official(content: Any) -> dict[str, Tensor]:
    """The state of our `DINO` with a `ViT` from all that an official checkpoint holds: both networks and the centre.

    Raises:
        ValueError: a part is missing, or a key is unknown.
    """
    try:
        parts = {name: dict(content[name]) for name in ("student", "teacher")}
        ours: dict[str, Tensor] = {"center": content["dino_loss"]["center"][0]}
    except (KeyError, TypeError, IndexError):
        raise ValueError("an official DINO checkpoint holds `student`, `teacher` and `dino_loss`") from None
    for name, state in parts.items():
        for key, tensor in state.items():
            place, _, inner = re.sub(r"^module\.", "", key).partition(".")
            if place not in ("backbone", "head"):
                raise ValueError(f"`{key}` is no key of an official DINO checkpoint")
            ours[f"{name}.{'encoder' if place == 'backbone' else 'head'}.{inner}"] = tensor
    return ours


def dino_to_official(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of `dino_from_official`; the student's names are those of a model that was spread over GPUs."""
    center = {"center": state["center"][None]}
    official: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}, "dino_loss": center}
    for key in [key for key in state if key != "center"]:
        name, place, inner = key.split(".", 2)
        prefix = "module." if name == "student" else ""
        official[name][f"{prefix}{'backbone' if place == 'encoder' else 'head'}.{inner}"] = state[key]
    return official


def hiera_mae_from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our `MAE` with a fusing `Hiera` and learned positions from the official `MaskedAutoencoderHiera`'s.

    Raises:
        ValueError: a key is unknown.
    """
    return _renamed(state, _HIERA | _DECODER, "Hiera")


def hiera_mae_to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `hiera_mae_from_official`."""
    return {re.sub(r"^norm\.", "encoder_norm.", _flat(key)): tensor for key, tensor in state.items()}


def hiera_from_official(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state of our `Hiera`, without fusion, from that of the official `Hiera` or `MaskedAutoencoderHiera`.

    Returns:
        The state, and the keys that are left out: a classification head, or fusion and decoder.

    Raises:
        ValueError: a key is unknown.
    """
    left = [key for key in state if re.fullmatch(_HEAD, key)]
    left += [key for key in state if re.match(r"decoder_|mask_token$|multi_scale_fusion_heads\.", key)]
    ours = _renamed(state, _HIERA | _DECODER, "Hiera", but=left)
    return {name.removeprefix("encoder."): tensor for name, tensor in ours.items()}, left


def hiera_to_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the official `Hiera` but for its classification head, from that of our `Hiera` without fusion."""
    return dict(state)


def _renamed(
    state: dict[str, Tensor], renames: dict[str, str], system: str, but: Sequence[str] = ()
) -> dict[str, Tensor]:
    """All but some keys under our names; every key is known, and no two become one."""
    ours: dict[str, Tensor] = {}
    for key in [key for key in state if key not in but]:
        name = _rename(key, renames, system)
        if name in ours:
            raise ValueError(f"`{key}` and another key are both `{name}`")
        ours[name] = state[key]
    return ours


def _rename(key: str, renames: dict[str, str], system: str) -> str:
    for pattern, replacement in renames.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    raise ValueError(f"`{key}` is no key of an official {system} checkpoint")


def _flat(key: str) -> str:
    if key.startswith("encoder."):
        return key.removeprefix("encoder.")
    if key == "decoder.mask_token":
        return "mask_token"
    return key.replace("decoder.", "decoder_", 1)


def _require_fixed_table(table: Tensor) -> None:
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise ValueError(f"`decoder_pos_embed` has {table.shape[1] - 1} positions, which is no square grid")
    if not torch.allclose(table[0, 1:].float().cpu(), sincos_2d((side, side), table.shape[2]), atol=1e-5):
        raise ValueError("`decoder_pos_embed` is not the fixed sine–cosine table that this decoder uses")
