"""DINO as an objective: its definition in plain loops, what moves once a step, and who may be trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.encoder.hiera import Hiera
from pretrain.encoder.vit import ViT
from pretrain.objective import dino as module
from pretrain.objective import dino_health
from pretrain.objective.dino import DINO
from pretrain.objective.dino_head import DINOHead
from pretrain.optim.groups import decay_groups
from pretrain.records import Batch, Progress
from pretrain.view.spec import ViewSpec
from tests.conftest import Golden, close

START = Progress(0, 100, 10)
NO = torch.tensor(False)
GLOBAL, LOCAL = ViewSpec(16, count=2), ViewSpec(8, count=3)


def small(local: ViewSpec | None = LOCAL, drop_path: float = 0.0, **arguments: object) -> DINO:
    vit = ViT(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, position="learned", drop_path=drop_path)
    head = {"prototypes": 12, "hidden_dim": 20, "bottleneck_dim": 6}
    built = DINO(vit, lambda in_dim: DINOHead(in_dim, **head), GLOBAL, local, **{"freeze_last_layer": 0} | arguments)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.teacher.parameters():  # another than the student, as after some steps
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        built.center.copy_(0.3 * torch.randn(12, generator=generator))
    return built.train()


def batch_of(objective: DINO, count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = tuple(
        torch.randn(view.count, count, 3, *view.height_width, generator=generator) for view in objective.views
    )
    return Batch(views, torch.arange(count), torch.full((count,), -1), [""] * count, seed=4)


def part(batch: Batch, start: int, stop: int) -> Batch:
    return replace(batch, views=tuple(view[:, start:stop] for view in batch.views), g=batch.g[start:stop])


def by_loops(objective: DINO, batch: Batch, student_temp: float = 0.1, temperature: float = 0.04) -> Tensor:
    """Algorithm 1 of the paper, view by view and sample by sample, with networks called on one image at a time."""

    def outputs(network: torch.nn.Module, image: Tensor) -> Tensor:
        tokens = network.encoder(image[None])  # type: ignore[operator, union-attr]
        hidden = F.normalize(network.head.mlp(tokens.cls), dim=-1)  # type: ignore[operator, union-attr]
        layer = network.head.last_layer  # type: ignore[union-attr]
        rows = layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True) * layer.weight_g  # type: ignore[union-attr, operator]
        return (hidden @ rows.T)[0]

    total, pairs = torch.zeros(()), 0
    for sample in range(len(batch)):
        images = [view[number, sample] for view in batch.views for number in range(len(view))]
        for g in range(2):
            with torch.no_grad():
                q = ((outputs(objective.teacher, images[g]) - objective.center) / temperature).softmax(0)
            for v, image in enumerate(images):
                if v != g:
                    logarithms = (outputs(objective.student, image) / student_temp).log_softmax(0)
                    total, pairs = total - (q * logarithms).sum(), pairs + 1
    return total / pairs


def gradients(objective: DINO, loss: Tensor) -> dict[str, Tensor]:
    objective.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in objective.named_parameters() if one.grad is not None}


def agrees(objective: DINO, batch: Batch) -> bool:
    """Whether loss and gradients are those of the loops, in float32 to 1e-4 of the greatest (sums in another order)."""
    expected = by_loops(objective, batch)
    theirs = gradients(objective, expected)
    loss = objective(batch, START).loss
    ours = gradients(objective, loss)
    same = abs(loss.item() / expected.item() - 1) < 1e-5 and ours.keys() == theirs.keys()
    return same and all((ours[key] - theirs[key]).abs().max() <= 1e-4 * theirs[key].abs().max() for key in theirs)


@pytest.mark.parametrize("local", [LOCAL, None], ids=["multi-crop", "global views alone"])
def test_loss_and_gradient_are_those_of_the_definition(local: ViewSpec | None) -> None:
    objective = small(local)
    assert agrees(objective, batch_of(objective))


def keeps_same_views(student: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    logits = student.float() / temperature
    return (logits.logsumexp(-1) - torch.einsum("gbk,vbk->gvb", probabilities, logits)).mean()


MUTATIONS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "the centre is added": ("teacher_probabilities", lambda t, c, temperature: ((t + c) / temperature).softmax(-1)),
    "no centre": ("teacher_probabilities", lambda t, c, temperature: (t / temperature).softmax(-1)),
    "temperatures swapped": ("teacher_probabilities", lambda t, c, temperature: ((t - c) / 0.1).softmax(-1)),
    "the student is as sharp": (
        "distillation_loss",
        lambda s, q, temperature: ORIGINAL_LOSS(s, q, 0.04),
    ),
    "same views are kept": ("distillation_loss", keeps_same_views),
}
ORIGINAL_LOSS = module.distillation_loss


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_loss_is_caught(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function = MUTATIONS[mutation]
    monkeypatch.setattr(module, name, function)
    objective = small()
    assert not agrees(objective, batch_of(objective))


def test_a_teacher_that_gradients_reach_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small()
    assert agrees(objective, batch_of(objective))
    objective.teacher.requires_grad_(True)
    monkeypatch.setattr(DINO, "teacher_outputs", DINO.teacher_outputs.__wrapped__)  # type: ignore[attr-defined]
    assert not agrees(objective, batch_of(objective))


@pytest.mark.parametrize("golden", ["dino_vit"], indirect=True)
def test_golden_networks_give_the_loss_of_their_outputs(golden: Golden) -> None:
    """The original's backbone and head in both roles: what the teacher says equals the original's own outputs."""
    sizes, head = golden.config, golden.config["head"]
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "norm_eps")
    vit = ViT(
        img_size=sizes["img_size"][0],
        position="learned",
        position_offset=0.1,
        **{name: sizes[name] for name in names},
    )
    widths = (head["out_dim"], head["nlayers"], head["hidden_dim"], head["bottleneck_dim"])
    images, local = golden["global_images"], golden["local_images"]
    views = (ViewSpec(images.shape[-1]), ViewSpec(local.shape[-1]))
    objective = DINO(vit, lambda in_dim: DINOHead(in_dim, *widths), *views)
    for network in (objective.student, objective.teacher):
        network.encoder.load_state_dict(golden.state("backbone."))
        network.head.load_state_dict(golden.state("head."))
    count = min(len(images), len(local))
    batch = Batch((images[None, :count], local[None, :count]), torch.arange(count), torch.zeros(count), [""], 0)
    assert close(objective.teacher_outputs(batch)[0], golden["head_out"][:count])
    _, student = objective.student([view[0] for view in batch.views])
    assert close(student[:count], golden["head_out"][:count])
    q = (golden["head_out"][:count] / 0.04).softmax(-1)
    expected = -(q * (student[count:] / 0.1).log_softmax(-1)).sum(-1).mean()  # the teacher's view with the local one
    assert abs(objective(batch, START).loss.item() / expected.item() - 1) <= 1e-5


# ── what moves once a step ───────────────────────────────────────────────────────────────────────────────────────────


def test_micro_batches_make_the_step_of_the_whole_batch() -> None:
    """Centre and teacher after the step, and the gradient, are those of one batch; each sees the centre from before."""
    whole, parts = small(), small()
    batch = batch_of(whole, 6)
    expected = gradients(whole, whole(batch, START).loss)
    before = parts.center.clone()
    losses = []
    parts.zero_grad()
    for start in (0, 2, 4):
        losses.append(parts(part(batch, start, start + 2), START).loss / 3)
        losses[-1].backward()
        assert torch.equal(parts.center, before)
    for name, parameter in parts.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)  # sums in another order
    for objective in (whole, parts):
        objective.after_step(START, NO)
    torch.testing.assert_close(parts.center, whole.center, atol=1e-6, rtol=1e-5)
    mean = whole.teacher_outputs  # the teacher has moved: the mean is taken with an untouched one
    untouched = small()
    mean = untouched.teacher_outputs(batch).mean(dim=(0, 1))
    torch.testing.assert_close(whole.center, 0.9 * before + 0.1 * mean, atol=1e-6, rtol=1e-5)
    assert whole.count == 0
    assert not whole.outputs.any()


def test_the_teacher_is_the_moving_average_of_the_student() -> None:
    objective = small(momentum_teacher=0.9)
    before = [one.clone() for one in objective.teacher.parameters()]
    objective(batch_of(objective), START)
    objective.after_step(START, NO)
    for old, new, student in zip(before, objective.teacher.parameters(), objective.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student, atol=1e-6, rtol=1e-5)
    objective(batch_of(objective), START)
    objective.after_step(Progress(100, 100, 10), NO)  # at the end of the schedule it stands still
    unmoved = [one.clone() for one in objective.teacher.parameters()]
    objective(batch_of(objective), START)
    objective.after_step(Progress(100, 100, 10), NO)
    assert all(map(torch.equal, unmoved, objective.teacher.parameters()))


def test_a_skipped_step_moves_nothing() -> None:
    objective = small()
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    batch = batch_of(objective)
    objective(replace(batch, views=tuple(view * math.nan for view in batch.views)), START)
    objective.after_step(START, torch.tensor(True))
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    objective(batch, START)  # and nothing of it is left for the next
    objective.after_step(START, NO)
    assert objective.center.isfinite().all()


def test_evaluation_leaves_no_trace() -> None:
    objective = small().eval()
    before = {key: value.clone() for key, value in (*objective.named_buffers(), *objective.named_parameters())}
    batch = batch_of(objective)
    with torch.no_grad():
        objective(batch, START)
        objective.health(batch, START)
        objective.illustrate(batch)
    after = (*objective.named_buffers(), *objective.named_parameters())
    assert all(torch.equal(value, before[key]) for key, value in after)


# ── who is trained ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_teacher_is_in_every_checkpoint_and_in_no_optimizer() -> None:
    objective = small()
    optimised = {id(one) for group in decay_groups(objective, objective.no_decay()) for one in group["params"]}
    assert not optimised & {id(one) for one in objective.teacher.parameters()}
    assert {id(one) for one in objective.student.parameters() if one.requires_grad} == optimised
    state = objective.state_dict()
    assert {f"teacher.{name}" for name, _ in objective.teacher.named_parameters()} <= state.keys()
    assert "center" in state
    assert not {"outputs", "count"} & state.keys()  # they are empty at every step boundary


def test_the_teacher_drops_nothing_and_the_student_by_view() -> None:
    objective = small(drop_path=0.5)
    batch = batch_of(objective)
    assert not objective.teacher.training
    assert torch.equal(objective.teacher_outputs(batch), objective.teacher_outputs(batch))
    same = replace(batch, views=tuple(view[:1].expand_as(view) for view in batch.views))
    views, keys = module._flattened(same)
    _, outputs = objective.student(views, keys)
    first, second = outputs[:6].unflatten(0, (2, 3))
    assert not torch.equal(first, second)  # equal images, two views: each drops by its own number
    numbers = torch.cat([key.number for key in keys])
    assert len(numbers.unique()) == len(numbers) == 15  # no view of any kind drops by the number of another
    alone = module._flattened(part(same, 1, 2))
    torch.testing.assert_close(objective.student(*alone)[1][1], second[1])


def test_prototypes_rest_in_the_first_epochs() -> None:
    objective = small(freeze_last_layer=2)
    batch = batch_of(objective)
    for step, frozen in ((0, True), (19, True), (20, False)):
        found = gradients(objective, objective(batch, Progress(step, 100, 10)).loss)
        assert ("student.head.last_layer.weight_v" not in found) == frozen
        assert found["student.head.mlp.0.weight"].abs().sum() > 0


def test_the_teachers_temperature_warms_up_epoch_by_epoch() -> None:
    objective = small(teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=5)
    got = [objective.teacher_temp(Progress(step, 100, 10)) for step in range(100)]
    expected = np.repeat(np.concatenate([np.linspace(0.04, 0.07, 5), np.full(5, 0.07)]), 10)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_teacher_begins_as_the_student() -> None:
    objective = small()
    objective.init_weights(7)
    pairs = zip(objective.student.parameters(), objective.teacher.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not objective.center.any()


# ── health ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def kinds(objective: DINO, batch: Batch) -> set[str]:
    objective.eval()
    health = {name: value.item() for name, value in objective.health(batch, START).items()}
    assert all(map(math.isfinite, health.values()))
    return {sentence.partition(":")[0] for sentence in objective.alarms(health)}


def test_health_tells_the_kinds_of_collapse_apart() -> None:
    sharp = {"teacher_temp": 0.002, "warmup_teacher_temp": 0.002}
    objective = small(**sharp)
    objective.center.copy_(objective.teacher_outputs(batch_of(objective, 16)).mean(dim=(0, 1)))
    batch = batch_of(objective, 16)
    assert kinds(objective, batch) == set()
    assert "uniform" in kinds(small(teacher_temp=50.0, warmup_teacher_temp=50.0), batch)
    uniform = small()
    with torch.no_grad():
        uniform.teacher.head.last_layer.weight_g.zero_()
        uniform.center.zero_()
    assert kinds(uniform, batch) == {"uniform"}
    peaked = small()
    with torch.no_grad():
        peaked.center[3] = -50.0
    assert kinds(peaked, batch) == {"peaked"}
    flat = small()
    with torch.no_grad():
        flat.teacher.encoder.norm.weight.zero_()
        flat.teacher.encoder.norm.bias.fill_(1.0)
    assert "rank" in kinds(flat, batch)


def test_kl_is_nothing_when_student_and_teacher_agree() -> None:
    objective = small(local=None, student_temp=0.04)
    objective.init_weights(0)
    batch = batch_of(objective)
    same = replace(batch, views=tuple(view[:1].expand_as(view) for view in batch.views))
    health = objective.eval().health(same, START)
    assert abs(health["kl"].item()) < 1e-5
    assert health["teacher_entropy"] > 0.1


def health_by_loops(objective: DINO, batch: Batch, temperature: float) -> dict[str, float]:
    """What the columns mean, view by view and sample by sample."""
    answers, vectors, losses, entropies = [], [], [], []
    for sample in range(len(batch)):
        images = [view[number, sample][None] for view in batch.views for number in range(len(view))]
        logits = [objective.student([image])[1][0] / 0.1 for image in images]
        for g in range(2):
            vector, outputs = objective.teacher([images[g]])
            q = ((outputs[0] - objective.center) / temperature).softmax(0)
            vectors.append(vector[0])
            answers.append(q)
            entropies.append(-(q * q.log()).sum())
            losses += [-(q * logits[v].log_softmax(0)).sum() for v in range(len(images)) if v != g]
    mean, values = torch.stack(answers).mean(0), torch.stack(vectors)
    singular = np.linalg.svd((values - values.mean(0)).double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    directions = (values / values.norm(dim=1, keepdim=True)).numpy()
    return {
        "teacher_entropy": float(torch.stack(entropies).mean()),
        "teacher_entropy_of_mean": float(-(mean * mean.log()).sum()),
        "kl": float(torch.stack(losses).mean() - torch.stack(entropies).mean()),
        "center_norm": float(objective.center.square().sum().sqrt()),
        "feature_std": float(directions.std(0).mean() * 4),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def test_health_is_what_its_columns_say() -> None:
    """In the middle of the temperature's warm-up, so that neither end of it would do."""
    objective = small(teacher_temp=0.07, warmup_teacher_temp=0.04, warmup_teacher_temp_epochs=7)
    batch, progress = batch_of(objective.eval(), 9), Progress(35, 100, 10)
    assert objective.teacher_temp(progress) == pytest.approx(0.055)
    with torch.no_grad():
        expected = health_by_loops(objective, batch, 0.055)
    found = {name: value.item() for name, value in objective.health(batch, progress).items()}
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"teacher_entropy_of_mean": 0.2, "teacher_entropy": 0.1}, ["peaked"]),  # several, but few, prototypes
        ({"teacher_entropy_of_mean": 1.0, "teacher_entropy": 0.995}, ["peaked"]),
        ({"teacher_entropy_of_mean": 1.0, "teacher_entropy": 0.98}, []),
        ({"teacher_entropy_of_mean": 3.0, "teacher_entropy": 2.995}, ["uniform"]),
        ({"effective_rank": 1.9}, ["rank"]),
        ({"feature_std": 5e-4}, ["rank"]),
        ({"effective_rank": 1.9, "teacher_entropy_of_mean": 4.84, "teacher_entropy": 4.839}, ["uniform", "rank"]),
    ],
)
def test_each_sign_of_collapse_is_an_alarm_by_itself(changes: dict[str, float], kinds: list[str]) -> None:
    healthy = {"teacher_entropy": 3.0, "teacher_entropy_of_mean": 4.0, "effective_rank": 60.0, "feature_std": 0.4}
    assert [line.partition(":")[0] for line in dino_health.alarms(healthy | changes, 128)] == kinds


def test_pictures_are_of_the_teacher_and_bear_what_is_not_finite() -> None:
    objective = small().eval()
    batch = batch_of(objective)
    before = objective.illustrate(batch)["views"]
    with torch.no_grad():
        objective.student.encoder.patch_embed.proj.weight.neg_()
    assert torch.equal(objective.illustrate(batch)["views"], before)
    with torch.no_grad():
        objective.teacher.encoder.patch_embed.proj.weight.neg_()
    assert not torch.equal(objective.illustrate(batch)["views"], before)
    for value in (torch.nan, torch.inf, 1e30):
        broken = replace(batch, views=tuple(view * value for view in batch.views))
        assert objective.illustrate(broken)["views"].shape == before.shape


def test_advice_names_what_is_far_off() -> None:
    objective = small()
    assert any("prototypes=12 for 10 images" in line for line in objective.advice(10, 4, 100_000, 100))
    assert any("prototypes=12 for 23 images" in line for line in objective.advice(23, 4, 100_000, 100))
    assert any("momentum_teacher=0.996 for 500 steps" in line for line in objective.advice(10_000, 512, 500, 100))
    assert any("looks back 64 epochs" in line for line in objective.advice(1000, 256, 100_000, 100))
    frozen = list(small(momentum_teacher=1.0).advice(1_281_167, 256, 10**6, 100))
    assert ["at most 0.999960 keeps it" in line for line in frozen] == [True]
    assert not list(objective.advice(10_000, 64, 2, 100))  # a trial
    assert any("images in all" in line for line in objective.advice(10_000, 16, 2000, 100))
    for momentum, asked in ((0.0, True), (0.89, True), (0.91, False)):
        lines = list(small(momentum_teacher=momentum).advice(1_281_167, 256, 10**6, 100))
        assert [line.startswith(f"objective.momentum_teacher={momentum}: ") for line in lines] == [True] * asked
    warm = {"teacher_temp": 0.07, "warmup_teacher_temp": 0.04}
    for settings, said in (
        (warm, "from the start"),
        (warm | {"warmup_teacher_temp_epochs": 30}, ""),
        ({"teacher_temp": 0.07, "warmup_teacher_temp": 0.07}, "from the start"),
        (warm | {"teacher_temp": 0.08, "warmup_teacher_temp_epochs": 30}, "known to be unstable"),
        ({"teacher_temp": 0.05, "warmup_teacher_temp": 0.05}, ""),
    ):
        lines = list(small(**settings).advice(1_281_167, 1024, 10**6, 100))
        assert [said in line for line in lines] == [True] * bool(said), (settings, lines)
    assert not list(objective.advice(1_281_167, 1024, 300 * 1251, 100))  # the published recipe
    long = small(freeze_last_layer=2, warmup_teacher_temp_epochs=3)
    assert ["2 of 2 epochs" in line or "3 of 2 epochs" in line for line in long.advice(10_000, 64, 2, 2)] == [True] * 2
    assert not list(long.advice(10_000, 64, 2, 3))
    assert any("sharpened" in line for line in small(teacher_temp=0.1).advice(1_281_167, 1024, 10**6, 100))


# ── what cannot work ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_work_is_refused_together() -> None:
    vit = ViT(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(
        ValueError, match=r"^objective.global_view.size: .*10×10 pixels .* mask units of 4.*8 or 12; o.*9×9"
    ):
        DINO(vit, DINOHead, ViewSpec(10, count=2), ViewSpec(9))
    with pytest.raises(ValueError, match=r"objective.local_view.size: .*3×3 .* such as 4$"):
        DINO(vit, DINOHead, ViewSpec(16, count=2), ViewSpec(3))
    with pytest.raises(ValueError, match="`prototypes` must be at least 2"):
        DINOHead(16, prototypes=1)
    with pytest.raises(ValueError, match="nothing to match"):
        DINO(vit, DINOHead, ViewSpec(16))
    with pytest.raises(ValueError, match=r"`student_temp` must be positive; `momentum_teacher` must be between"):
        DINO(vit, DINOHead, GLOBAL, student_temp=0.0, momentum_teacher=1.5)


def test_without_a_class_token_the_mean_goes_to_the_head() -> None:
    stages = {"stages": (1, 1), "q_pool": 1, "mask_unit_size": 2, "mask_unit_attn": (True, False)}
    hiera = Hiera(img_size=32, embed_dim=8, num_heads=1, patch_kernel=3, patch_stride=4, patch_padding=1, **stages)  # type: ignore[arg-type]
    objective = DINO(hiera, lambda in_dim: DINOHead(in_dim, 10, 2, 16, 4), ViewSpec(32, count=2))
    assert objective.pool == "mean"
    images = torch.randn(2, 3, 32, 32)
    vectors, _ = objective.teacher([images])
    torch.testing.assert_close(vectors, hiera.eval()(images).patches.mean(1))


# ── precision ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_loss_is_computed_in_float32_under_autocast() -> None:
    """As the original's: products of probabilities and logits are not rounded to bfloat16, nor is their gradient."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 4, 64, generator=generator).requires_grad_()
    q = torch.randn(2, 4, 64, generator=generator).softmax(-1)
    plain = module.distillation_loss(student, q, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.distillation_loss(student, q, 0.1)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)
    assert torch.equal(*(torch.autograd.grad(loss, student)[0] for loss in (plain, mixed)))


def test_pictures_are_drawn_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors and quantiles have no kernels for less on a GPU."""
    seen = []
    eigh, quantile = torch.linalg.eigh, torch.quantile
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (seen.append(x.dtype), eigh(x))[1])
    monkeypatch.setattr(torch, "quantile", lambda x, *a, **k: (seen.append(x.dtype), quantile(x, *a, **k))[1])
    objective = small().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        objective.illustrate(batch_of(objective))
    assert seen
    assert set(seen) == {torch.float32}


def test_health_of_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small().eval()
    batch = batch_of(objective, 10)
    whole = objective.health(batch, START)
    monkeypatch.setattr(module, "_PART", 3)
    for name, value in objective.health(batch, START).items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-4)  # sums in another order


def test_a_step_never_asks_the_device() -> None:
    """On the meta device nothing has a value, so whatever asks for one fails."""
    objective = small(drop_path=0.3).to("meta")
    batch = batch_of(objective)
    moved = replace(batch, views=tuple(view.to("meta") for view in batch.views), g=batch.g.to("meta"))
    objective(moved, START).loss.backward()
    objective.after_step(START, torch.tensor(False, device="meta"))
