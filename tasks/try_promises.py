"""Whether steps ever raise an error, whatever the picture, the operation and the rule.

python tasks/try_promises.py --images ../data --out runs/promises
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import load_images
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.descent import choose_networks
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import known_target
from weightedit.editing.operations import OPERATIONS
from weightedit.editing.refinement import CHUNK, GradientSteps, RefinementRule, refine, target_of
from weightedit.editing.rendering_problem import Layer, RenderingProblem, Summary
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention, convert
from weightedit.inr.fitting import fit
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import Adam
from weightedit.training.measured import Measured
from weightedit.training.report import table, write_result

KINDS = ("dots", "lines", "photographs", "mnist", "fashion_mnist", "cifar10")
"""Of the pictures that steps are tried on."""
ANEW = ("learned",)
"""Rules whose steps go by how many are still to come: every number of steps is a run of its own."""
RULES: dict[str, Callable[[str], RefinementRule]] = {
    "learned": LearnedKFAC.from_pretrained,
    "K-FAC by hand": lambda name: KFAC(),
    "Adam": lambda name: GradientSteps(Adam(4e-3)),
}


@dataclass(frozen=True)
class Promises:
    """Whether any INR is worse after any number of steps than it was before: refinement promises that none is.

    Pictures with one white pixel, with one thin line, crops of scikit-learn's two photographs, and test images of data
    sets; every operation that is known by name; three rules. After every one of `most` steps, where a rule's steps do
    not depend on how many there will be, so that one run has all of them; the learned one takes every number of `steps`
    from the start anew, and every CHUNK of INRs another one in turn, up to `most`. An error that rose is one of a
    rendering that rose by more than rounding, RISE times itself and TINY. Also shown are the medians of the error
    before and after the most of `steps`. What is measured is kept: started again, it goes on. Written:
    promises.{json,md}.

    Attributes:
        images: folder of data sets (mnist, fashion_mnist, cifar10), one folder each; empty leaves them out.
        kinds: of pictures, see KINDS; empty for all.
        operations: empty for all.
        rules: names of RULES.
        rule: the learned one.
        count: pictures of each kind; 0 for the whole protocol (100 dots and lines, 20 photographs, 128 of each set).
        steps: numbers of steps, at most `most`.
        most: steps, of the longest runs.
        out: folder of what is written.
        smoke: seconds instead of hours.
    """

    RISE: ClassVar[float] = 1e-5
    TINY: ClassVar[float] = 1e-9

    images: str = ""
    kinds: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    rules: tuple[str, ...] = tuple(RULES)
    rule: str = "refine-rule"
    count: int = 0
    steps: tuple[int, ...] = (1, 2, 5, 10, 20)
    most: int = 100
    out: str = "runs/promises"
    smoke: bool = False

    def run(self) -> dict[str, dict[str, Any]]:
        """Fit, take steps, compare; returns what was found by kind and rule."""
        if self.smoke:
            return replace(self, count=2, steps=(1, 3), most=4, operations=("dilate", "invert"), smoke=False).run()
        kinds = self.kinds or (KINDS if self.images else KINDS[:3])
        if unknown := [*(set(kinds) - set(KINDS)), *(set(self.rules) - set(RULES))]:
            raise WeightEditError(f"got {unknown}; expected kinds {', '.join(KINDS)} and rules {', '.join(RULES)}.")
        if not self.steps or not 0 < min(self.steps) <= max(self.steps) <= self.most:
            raise WeightEditError(f"got steps {self.steps}; expected numbers from 1 to {self.most}: correct them.")
        about = ("images", "rule", "count", "steps", "most")
        asked = {name: value for name, value in asdict(self).items() if name in about}
        measured = Measured(Path(self.out) / "measured.json", asked)
        found: dict[str, dict[str, Any]] = {}
        with tqdm(total=len(kinds) * len(self.rules) * len(self.operations or OPERATIONS)) as bar:
            for kind in kinds:
                stack = self.stack(kind)
                names = [name for name in self.operations or OPERATIONS if known_target(name, stack[:1]) is not None]
                for rule in self.rules:
                    parts = []
                    for number, name in enumerate(names):
                        key = f"{kind}, {rule}, {name}"
                        parts.append(
                            measured(key, lambda s=stack, r=rule, n=name, i=number: self.tried(s, r, n, turn=i))
                        )
                        bar.update()
                    found[f"{kind}, {rule}"] = {
                        "INRs": len(stack),
                        "operations": len(names),
                        "errors": sum(part["errors"] for part in parts),
                        "rose": sum(part["rose"] for part in parts),
                        "before": statistics.median(part["before"] for part in parts),
                        "after": statistics.median(part["after"] for part in parts),
                    }
        rows = [
            [
                *key.split(", "),
                *(row[k] for k in ("INRs", "operations", "errors", "rose")),
                *map(decibels, (row["before"], row["after"])),
            ]
            for key, row in found.items()
        ]
        heads = [
            "pictures",
            "rule",
            "INRs",
            "operations",
            "errors compared",
            "rose",
            "dB before",
            f"dB after {max(self.steps)}",
        ]
        text = (
            f"after every number of steps to {self.most}, learned ones after {', '.join(map(str, self.steps))} and one "
        )
        text += "in turn; dB: medians over INRs, then over operations\n\n"
        text += table(heads, rows)
        print(text)
        write_result(self.out, "promises", found, text)
        return found

    def stack(self, kind: str) -> INRStack:
        """Fits of the pictures of a kind, also those that missed 40 dB."""
        count = self.count or {"dots": 100, "lines": 100, "photographs": 20}.get(kind, 128)
        if kind in KINDS[:3]:
            images = {"dots": dots, "lines": lines, "photographs": photographs}[kind](count)
        else:
            images = load_images(str(Path(self.images) / kind), "test", limit=count).floats()
        return fit(images, generator=torch.Generator().manual_seed(0)).stack

    def tried(self, stack: INRStack, rule: str, name: str, turn: int) -> dict[str, float]:
        """How often steps towards an operation raised an error, and medians of it before and after the most of `steps`.

        `turn` counts operations: it says which numbers of steps are tried besides.
        """
        chosen, errors, rose, medians = RULES[rule](self.rule), 0, 0, []
        for number, rows in enumerate(torch.arange(len(stack)).split(CHUNK)):
            part = stack[rows]
            targets = target_of(name, part)
            before = mean_squared_errors(part, targets)
            if rule in ANEW:
                besides = 1 + 37 * (turn * math.ceil(len(stack) / CHUNK) + number) % self.most
                found = [
                    mean_squared_errors(refine(part, targets, n, rule=chosen), targets) for n in (*self.steps, besides)
                ]
                after = found[self.steps.index(max(self.steps))]
            else:
                found = errors_of_run(part, targets, chosen, self.most)
                after = found[max(self.steps)]
            rose += sum(int((~(error <= before * (1 + self.RISE) + self.TINY)).sum()) for error in found)
            errors += len(found) * len(part)
            medians.append(torch.stack([before, after]))
        ends = torch.cat(medians, 1).median(1).values.tolist()
        return {"errors": errors, "rose": rose, "before": ends[0], "after": ends[1]}


class Watched(RenderingProblem):
    """A problem that keeps what every step of a run found: the layers there, and their losses [N]."""

    def __init__(self, convention: Convention, targets: torch.Tensor) -> None:
        super().__init__(convention, targets)
        self.seen: list[tuple[list[Layer], torch.Tensor]] = []

    def summarize(self, layers: list[Layer], *, ridge: float | None = None, factors: bool = False) -> Summary:
        """See RenderingProblem.summarize."""
        found = super().summarize(layers, ridge=ridge, factors=factors)
        self.seen.append(([*layers[:-1], found.last], found.loss))
        return found


@torch.no_grad()
def errors_of_run(stack: INRStack, targets: torch.Tensor, rule: RefinementRule, most: int) -> list[torch.Tensor]:
    """The errors [N] after 0 to `most` steps, from one run of a rule whose steps do not depend on how many there are.

    What n steps give is the best of what the first n found, or the start, as in editing/descent.py.
    """
    problem = Watched(stack.convention.plain, targets)
    params = convert(stack.params, stack.convention, stack.convention.plain)
    rule.refine(problem, params, most + 1)
    least = problem.losses(problem.layers(params))
    kept, errors = problem.seen[0], []
    for layers, loss in problem.seen:
        kept = choose_networks(loss < kept[1], (layers, loss), kept)
        after = choose_networks(kept[1] <= least, problem.params(kept[0]), params)
        edited = stack.with_params(convert(after, stack.convention.plain, stack.convention))
        errors.append(mean_squared_errors(edited, targets))
    return errors


def decibels(error: float) -> str:
    """Of a mean squared error of images in [0, 1]."""
    return f"{-10 * math.log10(max(error, 1e-12)):.1f}"


def dots(count: int) -> torch.Tensor:
    """Black pictures of 28 x 28 with one white pixel each, [N, 1, 28, 28]."""
    images = torch.zeros(count, 28 * 28)
    images[range(count), torch.randint(28 * 28, (count,), generator=torch.Generator().manual_seed(0))] = 1.0
    return images.view(count, 1, 28, 28)


def lines(count: int) -> torch.Tensor:
    """Black pictures of 28 x 28 with one straight white line each, a pixel thick, [N, 1, 28, 28]."""
    ends = 27 * torch.rand(count, 2, 2, 1, generator=torch.Generator().manual_seed(0))
    places = torch.lerp(ends[:, 0], ends[:, 1], torch.linspace(0, 1, 100)).round().long()  # [N, 2, 100]
    images = torch.zeros(count, 28 * 28).scatter_(1, 28 * places[:, 0] + places[:, 1], 1.0)
    return images.view(count, 1, 28, 28)


def photographs(count: int, size: int = 64) -> torch.Tensor:
    """Crops of the two photographs that come with scikit-learn, in turn, [N, 3, size, size]."""
    from sklearn.datasets import load_sample_images

    sources, generator = load_sample_images().images, torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        source = torch.tensor(sources[i % len(sources)]).permute(2, 0, 1).float() / 255
        top, left = (int(torch.randint(n - size + 1, (), generator=generator)) for n in source.shape[1:])
        found.append(source[:, top : top + size, left : left + size])
    return torch.stack(found)


Config = Promises


if __name__ == "__main__":
    sys.exit(told_in_one_line("try_promises", lambda: tyro.cli(Config, description=__doc__).run()))
