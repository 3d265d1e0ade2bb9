"""When DINO is sick, and when its settings are far off for the data: what its users ask most (Caron et al., arXiv
2104.14294, §5.3).

Two collapses are its own. *Uniform*: the teacher gives all prototypes the same share. *Peaked*: it gives one prototype
everything. In both it says the same of every image, so the entropy of its mean answer is the mean entropy of its
answers; the difference of the two is what it tells of an image, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pretrain.view.spec import ViewSpec

_TRIAL = 100  # steps; who makes fewer wants to see whether it runs
_LEAST_SHOWN = 50_000  # images; docs/results.md has a recipe that learns from slightly more
_FEWEST_STEPS_BACK = 10
_WARMEST = 0.07  # of the teacher, in the official code's words
_WARM_AT_ONCE = 0.05
_SAME = 0.01  # nats that the teacher tells of an image, below which it tells nothing


@dataclass(frozen=True)
class Run:
    """How much a run shows: images in the data set, of a step, and steps, None where the clock ends it."""

    images: int
    batch: int
    steps: int | None


@dataclass(frozen=True)
class Temperatures:
    """Of the student's softmax, of the teacher's after its warm-up and before, and the warm-up's epochs."""

    student: float
    teacher: float
    start: float
    warmup: int


def alarms(health: Mapping[str, float], prototypes: int) -> Iterator[str]:
    """What values of `DINO.health` show: a sentence for each kind of collapse, the kind first."""
    most, one, mean = math.log(prototypes), health["teacher_entropy"], health["teacher_entropy_of_mean"]
    same = mean - one < _SAME  # what the teacher says of an image is what it says of all
    if same and one > 0.5 * most:
        yield (
            f"uniform: the teacher spreads every image over all {prototypes} prototypes alike (entropy "
            f"{one:.4f} of at most {most:.4f}), and the loss rests at that. A lower teacher_temp, a higher "
            "momentum_teacher or a lower learning rate are the usual cures"
        )
    if (same and one <= 0.5 * most) or mean < 0.05 * most:
        yield (
            "peaked: the teacher gives every image the same few prototypes (entropy of the mean over images "
            f"{mean:.4f} of at most {most:.4f}). Centring and a slow teacher prevent that: look at center_momentum "
            "and momentum_teacher, or raise the teacher's temperature"
        )
    if health["effective_rank"] < 2 or health["feature_std"] < 1e-3:
        yield (
            f"rank: features of different images point in one direction (effective rank "
            f"{health['effective_rank']:.2f}, spread {health['feature_std']:.4f})"
        )


def advice(
    run: Run, prototypes: int, momentum: float, temperatures: Temperatures, views: Sequence[ViewSpec]
) -> Iterator[str]:
    """What is far off for so much data: outside of what `docs/dino.md` advises.

    Args:
        run: how much that is.
        prototypes: how many.
        momentum: of the teacher, at the start.
        temperatures: of the student and of the teacher.
        views: the global ones, and the local ones if there are any.
    """
    images, batch, steps = run.images, run.batch, run.steps
    if 2 * prototypes > images:
        yield (
            f"objective.head.prototypes={prototypes} for {images} images: most would never be used; about a "
            "twentieth to a half of the images, a power of 2, is a good number"
        )
    if steps is not None and steps < _TRIAL:
        return
    yield from _pace(run, momentum)
    yield from _sharpness(temperatures)
    if steps is not None and batch * steps < _LEAST_SHOWN:
        yield (
            f"{steps} steps of {batch} show {batch * steps:,} images in all: nothing is known to be learned from less "
            f"than {_LEAST_SHOWN:,}; train for more epochs"
        )
    if len(views) > 1 and max(views[1].height_width) > max(views[0].height_width):
        yield (
            f"objective.local_view.size={views[1].size}: larger than the global views, {views[0].size}; local views "
            "are there to be small and cheap"
        )


def _pace(run: Run, momentum: float) -> Iterator[str]:
    """Whether the teacher follows too slowly or too fast."""
    horizon = 1 / max(1e-9, 1 - momentum)  # steps that it looks back
    if horizon < _FEWEST_STEPS_BACK:
        yield (
            f"objective.momentum_teacher={momentum}: the teacher looks back {horizon:.0f} steps, hardly more than the "
            "student itself, and training collapses; give 0.99 or more"
        )
    if run.steps is not None and momentum < 1 and run.steps < 5 * horizon:
        yield (
            f"objective.momentum_teacher={momentum} for {run.steps} steps: the teacher looks back {horizon:,.0f} steps "
            f"and leaves its random start late; at most {_one_minus(5 / run.steps)} would let it follow, or train "
            "longer"
        )
    if run.batch * horizon > 10 * run.images:
        yield (
            f"objective.momentum_teacher={momentum} with batches of {run.batch}: the teacher looks back "
            f"{run.batch * horizon / run.images:,.0f} epochs of {run.images} images; at most "
            f"{_one_minus(run.batch / (5 * run.images))} keeps it within five"
        )


def _sharpness(temperatures: Temperatures) -> Iterator[str]:
    """Whether the teacher's answers are sharp enough."""
    student, teacher = temperatures.student, temperatures.teacher
    if teacher >= student:
        yield (
            f"objective.teacher_temp={teacher} is not below student_temp={student}: nothing is "
            "sharpened, and training collapses"
        )
    elif teacher > _WARMEST:
        yield f"objective.teacher_temp={teacher}: above {_WARMEST} training is known to be unstable; give 0.04"
    elif teacher > _WARM_AT_ONCE and (not temperatures.warmup or temperatures.start > _WARM_AT_ONCE):
        yield (
            f"objective.teacher_temp={teacher} from the start: above {_WARM_AT_ONCE} it has to be warmed up to, "
            "by warmup_teacher_temp=0.04 and warmup_teacher_temp_epochs worth thousands of steps"
        )


def _one_minus(little: float) -> str:
    """1 - `little` with two digits of what it lacks: 0.9995, not 1."""
    return f"{max(0.0, 1 - little):.{max(2, 1 - math.floor(math.log10(little)))}f}"


def never_reached(epochs: int, frozen: int, warmup: int) -> Iterator[str]:
    """What would begin only after the run's end.

    Args:
        epochs: of the run.
        frozen: those in which the prototypes rest.
        warmup: those in which the teacher's temperature moves.
    """
    if frozen >= epochs:
        yield (
            f"objective.freeze_last_layer={frozen} of {epochs} epochs: the prototypes are never trained; give 0, or "
            "more epochs"
        )
    if warmup > epochs:
        yield (
            f"objective.warmup_teacher_temp_epochs={warmup} of {epochs} epochs: the teacher's temperature "
            "never arrives; give fewer, or more epochs"
        )
