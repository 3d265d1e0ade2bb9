"""ONNX: a graph from normalised images to all tokens, for any batch size, that needs no Python to run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder
from pretrain.interop.card import Card
from pretrain.records import UserError

_NAME = "model.onnx"
_LARGEST = 1_500_000_000  # bytes of weights in the file itself, which may have 2 GB; more go into `model.onnx.data`


class _Tokens(nn.Module):
    """An encoder with one tensor as output."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).joined()


def refuse(card: Card) -> None:
    """Raises UserError if it is not an encoder alone."""
    if card.part != "encoder":
        raise UserError("part=objective: an ONNX graph is of the encoder; take format=hf or format=official")


def fill(folder: Path, card: Card, encoder: Encoder) -> None:
    """Writes the graph with its weights."""
    images = torch.zeros(2, encoder.in_chans, *encoder.img_size)
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    torch.onnx.export(
        _Tokens(encoder).eval(),
        (images,),
        folder / _NAME,
        input_names=["images"],
        output_names=["tokens"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=size > _LARGEST,
        dynamo=True,
        verbose=False,
    )


def to_ours(folder: Path) -> dict[str, Tensor]:
    """Not possible: a graph does not name its weights."""
    raise UserError(
        f"checkpoint={folder}: an ONNX export holds a graph, not an encoder; take the run or another export"
    )


def ours(card: Card, encoder: Encoder, images: Tensor) -> Tensor:
    """What `theirs` is compared with."""
    return encoder(images).joined()


def theirs(folder: Path, card: Card, images: Tensor) -> Tensor:
    """All tokens [B, (1 +) L, D] of normalised images, by onnxruntime itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / _NAME, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["tokens"], {"images": images.numpy()})[0])
