"""Compare ways of fitting INRs to pictures.

    python tasks/compare_fits.py steps --rule checkpoints/refine-rule --out runs/fits
    python tasks/compare_fits.py sizes --out runs/sizes

steps: how many steps, and how much time, a SIREN needs from its random initialization to an image.
sizes: what `weightedit fit` makes of a photograph of every size, beside Adam in the same time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from torch.nn import functional
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import load_images
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.refinement import GradientSteps, RefinementRule, refine
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitOptions, fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import Adam
from weightedit.optim.rule_module import RuleModule
from weightedit.training.measured import Measured
from weightedit.training.report import table, write_result
from weightedit.training.timing import peak_megabytes, take_turns

ADAM = [Adam(rate, betas) for rate, betas in product((1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), ((0.9, 0.999), (0.7, 0.98)))]
GRIDS: dict[str, list[RefinementRule]] = {
    "Adam": [GradientSteps(rule) for rule in ADAM],
    "Adam, last layer solved": [GradientSteps(rule, solve_last=True) for rule in ADAM],
    "K-FAC": [KFAC(*numbers) for numbers in product((0.2, 0.3, 0.5), (0.3, 0.5, 0.7), (0.03, 0.1, 0.3))],
}
COUNTS = (*range(1, 41), *range(42, 101, 2))
"""Steps that a fit may take."""


@dataclass(frozen=True)
class Start:
    """Fresh INRs and the images that they are to become."""

    stack: INRStack
    targets: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor, hidden: Sequence[int], seed: int) -> Start:
        """One INR per image, under the default convention."""
        convention, (count, channels, height, width) = Convention(), images.shape
        generator = torch.Generator().manual_seed(seed)
        params = initial_params(count, (2, *hidden, channels), omega=convention.frequency, generator=generator)
        return cls(INRStack(params, convention, height, width), images)

    def psnr(self, rule: RefinementRule, steps: int) -> torch.Tensor:
        """In dB, one per image, after so many steps."""
        return -10 * mean_squared_errors(refine(self.stack, self.targets, steps, rule=rule), self.targets).log10()


@dataclass(frozen=True)
class Steps:
    """How many steps, and how much time, a SIREN needs from its random initialization to an image.

    Contenders: Adam, Adam with the last layer solved, K-FAC (each tuned on a grid over other images for the fewest
    steps to the higher level), and a learned rule as it is. Counted is the least number of steps after which the share
    `share` of all images has reached a level of PSNR; a rule that is told its number of steps is run anew for every
    number. Times are medians per INR in batches of 64, contenders taking turns. Written: fits.json, fits.md.

    Attributes:
        images: a hub name, or a data set that load_images reads.
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

    images: str = "ylecun/mnist"
    split: str = "test"
    rule: str = "refine-rule"
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

    def run(self) -> dict[str, Any]:
        """Tune, count, time; write fits.{json,md}; returns what is in the first."""
        budgets: Sequence[int] = (1, 2) if self.smoke else COUNTS
        if self.smoke and self.count > 2:
            return replace(self, count=2, tune_count=2, seeds=1, rounds=1, levels=(5.0, 6.0)).run()
        total = self.count * self.seeds + self.tune_count
        images = load_images(self.images, self.split, limit=total).floats()
        if len(images) < total or not 0 < self.share <= 1:
            raise WeightEditError(
                f"got {len(images)} images and a share of {self.share}; expected {total} images and a share in (0, 1]: "
                "lower count, seeds or tune_count."
            )
        *tests, tuning = images.split([self.count] * self.seeds + [self.tune_count])
        starts = [Start.of(part, self.hidden, seed) for seed, part in enumerate(tests)]
        rules = {name: self.tuned(name, Start.of(tuning, self.hidden, 1000), budgets) for name in GRIDS}
        rules["learned"] = LearnedKFAC.from_pretrained(self.rule)
        rules |= {Path(folder).name: GradientSteps(RuleModule.from_pretrained(folder)) for folder in self.update_rules}
        counts = {name: self.least_steps(starts, rule, budgets) for name, rule in tqdm(rules.items(), desc="counting")}
        batch = Start(starts[0].stack[:64], starts[0].targets[:64])
        times = [
            self.milliseconds({name: (rules[name], of[i] or 0) for name, of in counts.items() if of[i]}, batch)
            for i in range(len(self.levels))
        ]
        found = {
            name: {"steps": counts[name], "ms": [of.get(name) for of in times], "rule": str(rules[name])}
            for name in rules
        }
        result = {"config": asdict(self), "threads": torch.get_num_threads(), "rules": found}
        heads = [text for level in self.levels for text in (f"steps to {level:g} dB", "ms per INR")]
        rows = [
            [
                name,
                *(
                    cell
                    for steps, ms in zip(row["steps"], row["ms"], strict=True)
                    for cell in (steps or f"over {COUNTS[-1]}", "-" if ms is None else f"{ms:.2f}")
                ),
            ]
            for name, row in found.items()
        ]
        text = f"{self.share:.0%} of {self.count * self.seeds} images, {self.seeds} seeds\n\n"
        text += table(["rule", *heads], rows)
        write_result(self.out, "fits", result, text)
        print(text)
        return result

    def least_steps(self, starts: Sequence[Start], rule: RefinementRule, budgets: Sequence[int]) -> list[int | None]:
        """Per level, the least of `budgets` after which the share of the images is there."""
        found: list[int | None] = []
        for level in self.levels:
            first = None
            for steps in budgets[budgets.index(found[-1]) if found and found[-1] else 0 :]:
                if found and found[-1] is None:
                    break
                reached = torch.cat([start.psnr(rule, steps) for start in starts]) >= level
                if float(reached.double().mean()) >= self.share:
                    first = steps
                    break
            found.append(first)
        return found

    def tuned(self, name: str, start: Start, budgets: Sequence[int]) -> RefinementRule:
        """The member of the grid that needs the fewest steps to the higher level; by PSNR where none gets there."""

        def merit(rule: RefinementRule) -> tuple[float, float]:
            low, high = 1, len(budgets)  # by bisection: PSNR rises with steps, near enough for tuning
            while low < high:
                middle = (low + high) // 2
                reached = (start.psnr(rule, budgets[middle - 1]) >= self.levels[-1]).double().mean()
                low, high = (low, middle) if float(reached) >= self.share else (middle + 1, high)
            last = start.psnr(rule, budgets[low - 1]).quantile(1 - self.share)
            return (budgets[low - 1] if last >= self.levels[-1] else math.inf), -float(last)

        return min(tqdm(GRIDS[name], desc=f"tuning {name}", leave=False), key=merit)

    def milliseconds(self, contenders: Mapping[str, tuple[RefinementRule, int]], start: Start) -> dict[str, float]:
        """Median time per INR of so many steps, contenders taking turns."""

        def steps(rule: RefinementRule, count: int) -> Callable[[], INRStack]:
            return lambda: refine(start.stack, start.targets, count, rule=rule)

        timed = take_turns({name: steps(*chosen) for name, chosen in contenders.items()}, self.rounds)
        return {name: 1e3 * timing.wall / len(start.stack) for name, timing in timed.items()}


@dataclass(frozen=True)
class Sizes:
    """What the default fit makes of one photograph, by its size and channels, beside plain Adam in the same time.

    The picture is scikit-learn's china.jpg, the middle square of it, resized; Adam's rate is the best of `rates` on its
    flower.jpg, at the same size (at most `tune_size`) and time. Given are dB on the pixels and between them (against
    bicubic interpolation at four times the size, the pixels themselves left out), seconds of the processor, steps, and
    megabytes beyond what the process held. A fit of a row that was stopped starts anew, rows done are kept. Written:
    sizes.json, sizes.md.

    Attributes:
        sizes: sides in pixels.
        channels: 1 is gray, 3 is RGB.
        rates: of Adam.
        tune_size: side of the largest picture that Adam is tuned on; larger ones take the rate of this one.
        target_psnr: dB at which the default fit ends; None is its default for the size.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    sizes: tuple[int, ...] = (28, 64, 128, 256)
    channels: tuple[int, ...] = (1, 3)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    tune_size: int = 128
    target_psnr: float | None = None
    out: str = "runs/sizes"
    smoke: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Measure what is not there yet; write sizes.{json,md}; returns the rows."""
        if self.smoke and len(self.sizes) > 1:
            return replace(self, sizes=(16,), rates=self.rates[:2], target_psnr=15.0).run()
        about = {name: value for name, value in asdict(self).items() if name not in ("sizes", "channels", "out")}
        measured, rows = Measured(Path(self.out) / "measured.json", about), []
        for size, channels in product(self.sizes, self.channels):
            rows.append(self.smooth(measured, size, channels))
            rate = self.rate(measured, min(size, self.tune_size), channels)
            chosen = "china", size, channels, rate, rows[-1]["seconds"]
            rows.append(measured(f"{size} x {size} x {channels}, adam", partial(self.adam, *chosen)))
        heads = list(rows[0])
        text = table(heads, [[f"{row[k]:.1f}" if isinstance(row[k], float) else row[k] for k in heads] for row in rows])
        print(text)
        write_result(self.out, "sizes", rows, text)
        return rows

    def smooth(self, measured: Measured, size: int, channels: int) -> dict[str, Any]:
        """The default fit of china.jpg."""
        job = partial(self.row, "china", size, channels, FitOptions(target_psnr=self.target_psnr), "default")
        return measured(f"{size} x {size} x {channels}, smooth", job)

    def rate(self, measured: Measured, size: int, channels: int) -> float:
        """Adam's best on flower.jpg, in the time that the default fit of china.jpg took."""
        seconds = self.smooth(measured, size, channels)["seconds"]

        def reached(rate: float) -> float:
            return self.adam("flower", size, channels, rate, seconds)["dB"]

        return measured(f"{size} x {size} x {channels}, rate", lambda: max(self.rates, key=reached))

    def adam(self, name: str, size: int, channels: int, rate: float, seconds: float) -> dict[str, Any]:
        """Adam for about so many seconds of the processor."""
        image, few = photograph(name, size, channels), FitOptions(method="adam", retries=0, max_steps=4)
        fit(image, options=few)
        started = time.process_time()
        fit(image, options=few)
        steps = max(1, round(4 * seconds / (time.process_time() - started)))
        options = replace(few, learning_rate=rate, max_steps=steps, target_psnr=90.0)
        return self.row(name, size, channels, options, f"adam, rate {rate:g}")

    def row(self, name: str, size: int, channels: int, options: FitOptions, told: str) -> dict[str, Any]:
        """One fit, measured."""
        image, generator = photograph(name, size, channels), torch.Generator().manual_seed(0)
        megabytes = peak_megabytes(lambda: fit(image, options=replace(options, max_steps=5, retries=0)))
        started = time.process_time()
        found = fit(image, options=options, generator=generator)
        seconds = time.process_time() - started
        return {
            "pixels": f"{size} x {size} x {channels}",
            "network": "-".join(map(str, found.stack.widths)),
            "fit": told,
            "dB": float(found.psnr),
            "dB between": psnr_between(found.stack, image),
            "steps": int(found.steps),
            "seconds": seconds,
            "MB": round(megabytes),
        }


def photograph(name: str, size: int, channels: int) -> torch.Tensor:
    """The middle square of a photograph that scikit-learn brings, [1, channels, size, size] in [0, 1]."""
    from sklearn.datasets import load_sample_image

    image = ImageOps.fit(Image.fromarray(load_sample_image(f"{name}.jpg")), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image if channels == 3 else image.convert("L"))).reshape(size, size, channels)
    return pixels.permute(2, 0, 1)[None].float() / 255


def psnr_between(stack: INRStack, images: torch.Tensor, factor: int = 4) -> float:
    """Mean PSNR in dB against bicubic interpolation at `factor` times the size, without the pixels themselves."""
    size = tuple((length - 1) * factor + 1 for length in images.shape[2:])
    errors = (stack.render(*size) - functional.interpolate(images, size, mode="bicubic", align_corners=True)).square()
    among = torch.zeros(size)
    among[::factor, ::factor] = 1
    return float(-10 * errors[:, :, among == 0].mean((1, 2)).log10().mean())


Config = Steps | Sizes


if __name__ == "__main__":
    sys.exit(told_in_one_line("compare_fits", lambda: tyro.cli(Config, description=__doc__).run()))
