"""The contract of every objective: a batch in, a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from pretrain.encoder.encoder import Encoder
from pretrain.records import Batch, Progress, StepOutput
from pretrain.view.spec import ViewSpec


class Objective(nn.Module, ABC):
    """What is trained: the encoder with whatever turns its tokens into a loss (decoder, heads, teacher).

    It knows neither trainer nor configuration, and can be tested with a batch alone. Every random decision it makes
    about a sample is drawn from `pretrain.random`, keyed by (batch.seed, batch.g).

    Attributes:
        views: the views it wants of every sample; `Batch.views` has one tensor for each, in this order.
        pool: how probes make one vector of the exported encoder's tokens, unless told otherwise.
    """

    views: tuple[ViewSpec, ...]
    pool: Literal["cls", "mean"]

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The mean loss over a (micro-)batch of prepared views."""

    @abstractmethod
    def after_step(self, progress: Progress) -> None:
        """What must move once per optimizer step, after it: a teacher, a centre."""

    @property
    @abstractmethod
    def encoder_for_export(self) -> Encoder:
        """The encoder that probes and exports take."""

    @abstractmethod
    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard, to recompute and to compile one by one: the encoder's and its own."""

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay, beside biases and vectors, which always are."""

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Fills every parameter and buffer, whatever they hold: each from (seed, its own name) alone."""

    @abstractmethod
    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures that show a person what is being learned: name → [3, H, W] uint8. No gradient, no side effect."""
