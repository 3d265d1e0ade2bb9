"""Says what a run will amount to, without shards, a GPU or weights.

    pretrain plan +experiment=mae_vitl devices=64 global_batch_size=4096

All words but `devices` and `num_samples` are overrides, as `python -m pretrain` takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config.arguments import word
from pretrain.config.problem import UserError
from pretrain.launch import collector


@dataclass(frozen=True)
class Arguments:
    devices: int = word("On how many devices.", 1, example="64")
    num_samples: int | None = word(
        "The samples of an epoch; by default what a mixture's index counts, or what the recipe states.",
        None,
        example="1281167",
    )


@collector.resting()
def main(arguments: Arguments, overrides: list[str]) -> None:
    from pretrain.assemble import objective_of
    from pretrain.config.check import composed_without_data
    from pretrain.data.opening import known_shares, known_size
    from pretrain.plan import cost, empty_batch, plan

    cfg = composed_without_data(overrides)
    sources = known_shares(cfg.data.train, cfg.data.sources, cfg.data.index_dir, cfg.data.skip)
    counted = known_size(cfg.data.train, cfg.data.index_dir, cfg.data.skip) if sources else None
    samples = arguments.num_samples or counted or cfg.data.num_samples
    if samples is None:
        raise UserError("num_samples=… is missing: this configuration does not state data.num_samples")
    print(plan(cfg, samples, arguments.devices, sources))
    objective = objective_of(cfg)
    batch = empty_batch((view.count, len(view.mean), *view.height_width) for view in objective.views)
    print(cost(objective, objective.trained_encoder, batch))
