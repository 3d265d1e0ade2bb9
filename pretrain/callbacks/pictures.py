"""Pictures that a person can judge a run by, as PNG files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pretrain.callbacks.journal import read_rows
from pretrain.callbacks.step import Context, StepCallback
from pretrain.records import Batch, Problem, refuse
from pretrain.trainer.events import AtEnd

log = logging.getLogger(__name__)

_WIDTH = 480  # of a picture, at least about


class Pictures(StepCallback, AtEnd):
    """Draws the objective's own pictures every n steps and at the last, `pictures/NAME_STEP.png`; then the loss curve.

    Args:
        context: of the run.
        every_steps: how often.
        samples: how many samples a picture shows, the same ones every time.
    """

    def __init__(self, context: Context, every_steps: int = 500, samples: int = 8) -> None:
        refuse(self, self.problems(every_steps, samples))
        self.context = context
        self.every_steps = every_steps
        self.samples = samples
        self._batch: Batch | None = None

    @staticmethod
    def problems(every_steps: int, samples: int, **_: object) -> Iterator[Problem]:
        for name, value in {"every_steps": every_steps, "samples": samples}.items():
            if value < 1:
                yield name, "must be at least 1"

    def after_step(self) -> None:
        state = self.context.state
        if state.step % self.every_steps and not state.at_end:
            return
        with state.set_aside():
            self._batch = self._batch or self.context.examples(self.samples)
            pictures = self.context.illustrate(self._batch)  # all ranks, which may hold a part of the weights each
            for name, picture in pictures.items() if self.context.leads else ():
                try:
                    self._save(Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()), f"{name}_{state.step:08d}.png")
                except OSError as failure:
                    log.error("no picture of step %d: %s. Training goes on", state.step, failure)

    def on_train_end(self) -> None:
        if not self.context.leads:
            return
        try:
            draw_curves(self.context.folder / "metrics.jsonl", self._folder() / "loss.png")
        except OSError as failure:
            log.error("no loss curve: %s", failure)

    def _folder(self) -> Path:
        folder = self.context.folder / "pictures"
        folder.mkdir(exist_ok=True)
        return folder

    def _save(self, image: Image.Image, name: str) -> None:
        scale = max(1, _WIDTH // image.width)  # small images are shown large, pixel by pixel
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(self._folder() / name)


def draw_curves(metrics: Path, target: Path) -> None:
    """Loss (and validation loss) and learning rate over steps, from a run's `metrics.jsonl`."""
    import matplotlib  # here, since a run draws them once, at its end
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    rows = read_rows(metrics)
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes, names in ((upper, ("loss", "val_loss")), (lower, ("lr",))):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        if axes.lines:  # a run may end before any value is finite
            axes.legend()
        axes.grid(alpha=0.3)
    lower.set_xlabel("optimizer step")
    figure.savefig(target, dpi=120)
