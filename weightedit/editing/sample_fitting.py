"""INRs of samples, fitted by the steps of refinement from fresh weights: sounds, distances, videos.

Pictures have a fit of their own (inr/fitting.py), which takes thousands at once and makes use of rows and columns.
Here a fit is what refinement is, steps of K-FAC with the last layer solved, from an initialization of its own, whatever
the number of inputs; so no step raises an error, and memory is bounded by bands of samples.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from tqdm import tqdm

from weightedit.capacity import check_capacity
from weightedit.editing.curvature import KFAC
from weightedit.editing.descent import choose_networks
from weightedit.editing.evaluation import sample_errors
from weightedit.editing.refinement import refine
from weightedit.errors import WeightEditError, check_whole
from weightedit.inr.convention import SAMPLES, Convention, convert
from weightedit.inr.fitting import FitResult
from weightedit.inr.samples import Samples
from weightedit.inr.siren import check_widths, initial_params, parameter_count
from weightedit.inr.stack import FRAMES, INRStack

TARGET, MOST, ROUND = 50.0, 200, 20
"""Default target in dB and steps; steps between two looks at who has reached it."""
SEEN = 2**16
"""Samples that a step sees at most: of more, every round sees others."""


@torch.no_grad()
def fit_samples(
    samples: Samples,
    *,
    hidden: tuple[int, ...] | None = None,
    convention: Convention | None = None,
    target_psnr: float = TARGET,
    max_steps: int = MOST,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> FitResult:
    """One SIREN per INR of the samples, each from an initialization of its own.

    Args:
        samples: of N INRs.
        hidden: widths of the hidden layers; None chooses by the number of samples, see `Samples.widths`.
        convention: of the INRs; None is `Samples.convention`, whose first layer's frequency follows from the number of
            samples. Its sines may have frequencies of their own; its last layer is linear.
        target_psnr: in dB, of the values' range (largest less smallest) over the error. It ends the fit.
        max_steps: at least 1.
        generator: where initializations come from; None is PyTorch's global CPU generator.
        progress: show a tqdm bar.

    Returns:
        A FitResult, of all INRs, also those that missed the target; they are in float32, or float64 as the values are.

    Raises:
        ParamsError: coordinates outside the convention's ranges. WeightEditError: numbers out of range, other functions
            than sines and a linear last layer, or more than this machine can hold.
    """
    chosen = convention or samples.convention()
    if not 0 < target_psnr < math.inf:
        raise WeightEditError(f"target_psnr={target_psnr!r}: expected a positive number; correct it.")
    check_whole("max_steps", max_steps, 1)
    chosen.plain.check_plain_siren()
    samples.check_range(chosen)
    start = _start(samples, hidden, chosen, generator)
    stack, steps = start, torch.zeros(len(samples), dtype=torch.long)
    errors = sample_errors(stack, samples)
    span, source = samples.span().square(), torch.Generator().manual_seed(0)
    with tqdm(total=max_steps, desc="fitting", unit="step", disable=not progress) as bar:
        for done in range(0, max_steps, ROUND):
            left = (-10 * (errors / span).log10() < target_psnr).nonzero().flatten()
            if not len(left):
                break
            more = min(ROUND, max_steps - done)
            part, own = stack[left], samples[left]
            seen = own if own.count <= SEEN else own.only(torch.randperm(own.count, generator=source)[:SEEN])
            after = refine(part, seen, more, rule=KFAC())
            reached = sample_errors(after, own)
            better = reached < errors[left]
            kept = choose_networks(better, after.params, part.params)
            stack = replace(
                stack, params={name: tensor.index_copy(0, left, kept[name]) for name, tensor in stack.params.items()}
            )
            errors, steps[left] = errors.index_copy(0, left, torch.where(better, reached, errors[left])), done + more
            bar.update(more)
    psnr = -10 * (errors / span).clamp(min=torch.finfo(errors.dtype).eps ** 2).log10()
    missed = torch.nonzero(~(psnr >= target_psnr)).squeeze(1)
    provenance = {"init": "siren", "method": "kfac", "target_psnr": f"{target_psnr:g}", "max_steps": str(max_steps)}
    provenance |= {FRAMES: str(samples.grid[0])} if len(samples.grid) == 3 else {}
    provenance["steps"] = f"{int(steps.min())} to {int(steps.max())}" if len(steps) else "none"
    return FitResult(replace(stack, psnr=psnr, provenance=provenance), steps, psnr, missed)


def _start(
    samples: Samples, hidden: tuple[int, ...] | None, convention: Convention, generator: torch.Generator | None
) -> INRStack:
    widths = check_widths(samples.widths() if hidden is None else (samples.inputs, *hidden, samples.values.shape[-1]))
    what = f"{len(samples):,} SIRENs of widths {'-'.join(map(str, widths))}"
    size, wide = parameter_count(widths), torch.promote_types(samples.values.dtype, torch.float32)
    check_capacity(4 * len(samples) * size * wide.itemsize, what, "choose fewer or narrower ones")
    # The frequencies of fresh layers, but for the first one's, say nothing: weights are drawn in inverse proportion.
    drawn = initial_params(len(samples), widths, generator=generator)
    as_drawn = replace(SAMPLES, omega=(convention.omegas(1)[0], 30.0), coordinates=convention.coordinates)
    meant = replace(convention, low=0.0, high=1.0, offset=0.0)
    params = {name: tensor.to(samples.values.device, wide) for name, tensor in convert(drawn, as_drawn, meant).items()}
    return INRStack(params, convention, *samples.shape())
