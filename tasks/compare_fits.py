"""How many steps, and how much time, a SIREN needs from its random initialisation to an image: rules side by side.

    python tasks/compare_fits.py --images ../shared/data/mnist --rule checkpoints/refine-rule

Contenders: Adam, Adam with the last layer solved, K-FAC (each tuned on a grid over other images for the fewest steps
to the higher level), and a learned rule as it is. Counted is the least number of steps after which the share `share` of
all images has reached a level of PSNR; a rule that is told its number of steps is run anew for every number. Times are
medians per INR in batches of 64, contenders taking turns. Written: out/fits.json, out/fits.md.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import load_images
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.refinement import GradientSteps, RefinementRule, refine
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import Adam
from weightedit.optim.loading import load_rule

ADAM = [Adam(rate, betas) for rate, betas in product((1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), ((0.9, 0.999), (0.7, 0.98)))]
GRIDS: dict[str, list[RefinementRule]] = {
    "Adam": [GradientSteps(rule) for rule in ADAM],
    "Adam, last layer solved": [GradientSteps(rule, solve_last=True) for rule in ADAM],
    "K-FAC": [KFAC(*numbers) for numbers in product((0.2, 0.3, 0.5), (0.3, 0.5, 0.7), (0.03, 0.1, 0.3))],
}
BUDGETS = (*range(1, 41), *range(42, 101, 2))


@dataclass(frozen=True)
class Config:
    """One comparison.

    Attributes:
        images: a data set that load_images reads.
        split: of it; its first images are the test, the following ones the tuning images.
        rule: folder of a refinement rule.
        update_rules: folders of update rules (meta_train.py --problems mnist-siren), which see gradients only.
        hidden: widths of the sine layers.
        count: test images per seed.
        tune_count: images that hand-designed rules are tuned on.
        seeds: sets of initial weights.
        levels: PSNR in dB to be reached.
        share: of all images.
        rounds: turns of the timing.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    images: str = "../shared/data/mnist"
    split: str = "test"
    rule: str = "checkpoints/refine-rule"
    update_rules: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (32, 32)
    count: int = 128
    tune_count: int = 32
    seeds: int = 3
    levels: tuple[float, float] = (30.0, 40.0)
    share: float = 0.95
    rounds: int = 5
    out: str = "runs/fits"
    smoke: bool = False


@dataclass(frozen=True)
class Start:
    """Fresh INRs and the images that they are to become."""

    stack: INRStack
    targets: Tensor

    @classmethod
    def of(cls, images: Tensor, hidden: Sequence[int], seed: int) -> Start:
        """One INR per image, under the default convention."""
        convention, (count, channels, height, width) = Convention(), images.shape
        generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"init": "siren", "omega": convention.frequency, "generator": generator}
        params = initial_params(count, (2, *hidden, channels), **options)
        return cls(INRStack(params, convention, height, width), images)

    def psnr(self, rule: RefinementRule, steps: int) -> Tensor:
        """In dB, one per image, after so many steps."""
        return -10 * mean_squared_errors(refine(self.stack, self.targets, steps, rule=rule), self.targets).log10()


def least_steps(
    starts: Sequence[Start], rule: RefinementRule, config: Config, budgets: Sequence[int]
) -> list[int | None]:
    """Per level, the least of `budgets` after which the share of the images is there."""
    found: list[int | None] = []
    for level in config.levels:
        first = None
        for steps in budgets[budgets.index(found[-1]) if found and found[-1] else 0 :]:
            if found and found[-1] is None:
                break
            reached = torch.cat([start.psnr(rule, steps) for start in starts]) >= level
            if float(reached.double().mean()) >= config.share:
                first = steps
                break
        found.append(first)
    return found


def tuned(name: str, start: Start, config: Config, budgets: Sequence[int]) -> RefinementRule:
    """The member of the grid that needs the fewest steps to the higher level; by PSNR where none gets there."""

    def merit(rule: RefinementRule) -> tuple[float, float]:
        low, high = 1, len(budgets)  # by bisection: PSNR rises with steps, near enough for tuning
        while low < high:
            middle = (low + high) // 2
            share = float((start.psnr(rule, budgets[middle - 1]) >= config.levels[-1]).double().mean())
            low, high = (low, middle) if share >= config.share else (middle + 1, high)
        last = start.psnr(rule, budgets[low - 1]).quantile(1 - config.share)
        return (budgets[low - 1] if last >= config.levels[-1] else math.inf), -float(last)

    return min(tqdm(GRIDS[name], desc=f"tuning {name}", leave=False), key=merit)


def milliseconds(contenders: dict[str, tuple[RefinementRule, int]], start: Start, rounds: int) -> dict[str, float]:
    """Median time per INR of so many steps, contenders taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, (rule, steps) in contenders.items():
            begun = time.perf_counter()
            refine(start.stack, start.targets, steps, rule=rule)
            times[name].append(1e3 * (time.perf_counter() - begun) / len(start.stack))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main(config: Config) -> dict[str, Any]:
    """Tune, count, time; write out/fits.{json,md}; returns what is in the first."""
    budgets: Sequence[int] = BUDGETS
    if config.smoke:
        budgets = (1, 2)
        config = replace(config, count=2, tune_count=2, seeds=1, rounds=1, levels=(5.0, 6.0))
    total = config.count * config.seeds + config.tune_count
    images = load_images(config.images, config.split, limit=total).floats()
    if len(images) < total or not 0 < config.share <= 1:
        raise WeightEditError(
            f"{len(images)} images and a share of {config.share} came; expected {total} images and a share in (0, 1]: "
            "lower count, seeds or tune_count."
        )
    *tests, tuning = images.split([config.count] * config.seeds + [config.tune_count])
    starts = [Start.of(part, config.hidden, seed) for seed, part in enumerate(tests)]
    rules = {name: tuned(name, Start.of(tuning, config.hidden, 1000), config, budgets) for name in GRIDS}
    rules["learned"] = LearnedKFAC.from_pretrained(config.rule)
    rules |= {Path(folder).name: GradientSteps(load_rule(folder)) for folder in config.update_rules}
    counts = {name: least_steps(starts, rule, config, budgets) for name, rule in tqdm(rules.items(), desc="counting")}
    batch = Start(starts[0].stack[:64], starts[0].targets[:64])
    times = [
        milliseconds(
            {name: (rules[name], steps[i] or 0) for name, steps in counts.items() if steps[i]}, batch, config.rounds
        )
        for i in range(len(config.levels))
    ]
    rows = {
        name: {"steps": counts[name], "ms": [found.get(name) for found in times], "rule": str(rules[name])}
        for name in rules
    }
    result = {"config": asdict(config), "threads": torch.get_num_threads(), "rules": rows}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "fits.json").write_text(json.dumps(result, indent=1))
    (out / "fits.md").write_text(report(config, rows) + "\n")
    print(report(config, rows))
    return result


def report(config: Config, rows: dict[str, Any]) -> str:
    """A Markdown table, a row per rule."""
    levels = " | ".join(f"steps to {level:g} dB | ms per INR" for level in config.levels)
    lines = [
        f"{config.share:.0%} of {config.count * config.seeds} images, {config.seeds} seeds",
        "",
        f"| rule | {levels} |",
        "|---" * (1 + 2 * len(config.levels)) + "|",
    ]
    for name, row in rows.items():
        cells = [
            f"{steps or f'over {BUDGETS[-1]}'} | {'-' if ms is None else f'{ms:.2f}'}"
            for steps, ms in zip(row["steps"], row["ms"], strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.exit(told_in_one_line("compare_fits", lambda: main(config)))
