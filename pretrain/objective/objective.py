"""The contract of every objective: a batch in, a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
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
        rests: whether there are steps in which a trained parameter gets no gradient: several ranks have to look for it.
    """

    views: tuple[ViewSpec, ...]
    pool: Literal["cls", "mean"]
    rests: bool = False

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The mean loss over a (micro-)batch of prepared views."""

    @abstractmethod
    def after_step(self, progress: Progress, skipped: Tensor) -> None:
        """What must move once per optimizer step, after it: a teacher, a centre.

        Args:
            progress: of the step that was made.
            skipped: a bool on the device: whether the weights stayed as they were, since the loss or a gradient was not
                finite. Then nothing else may move either. To look at it on the host would make the device wait.
        """

    @property
    @abstractmethod
    def encoder_for_export(self) -> Encoder:
        """The encoder that probes and exports take."""

    @property
    @abstractmethod
    def trained_encoder(self) -> Encoder:
        """The encoder that the optimizer trains: the exported one, unless that is a teacher."""

    @abstractmethod
    def health(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """What tells a healthy run from a collapsed one, as detached scalars, of a prepared batch.

        Called in evaluation mode, on the same samples every time. No gradient, no side effect.
        """

    @abstractmethod
    def alarms(self, health: Mapping[str, float]) -> Iterator[str]:
        """The kinds of collapse that values of `health` show, a sentence each, the kind's name first."""

    @abstractmethod
    def advice(self, images: int, batch: int, steps: int | None, epochs: int) -> Iterator[str]:
        """What a user should know of settings that are far off for so much data, a sentence each.

        Args:
            images: in the data set.
            batch: the global one.
            steps: of the whole run, None where the clock ends it.
            epochs: of the schedule, which a shorter run has as many of (`Progress.epochs`).
        """

    @abstractmethod
    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard, to recompute and to compile one by one: the encoder's and its own.

        Each is called, as a module, by the forward pass; encoders and the objective itself are sharded around them.
        """

    @abstractmethod
    def no_decay(self) -> set[str]:
        """Names of parameters exempt from weight decay, beside biases and vectors, which always are."""

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Fills every parameter and buffer, whatever they hold: each from (seed, its own name) alone.

        Parameters may be sharded: they are filled by `pretrain.nn.initialize.fill`.
        """

    @abstractmethod
    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures that show a person what is being learned: name → [3, H, W] uint8. No gradient, no side effect."""
