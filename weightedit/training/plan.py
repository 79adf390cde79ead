"""What a training run does at its step s: its options, and the learning rate and the batch as pure functions of them.

Because nothing here depends on the steps before, a run needs no sampler or scheduler state to be resumed, and several
processes share a batch without talking. Not here: the loop itself (loop.py). The cosine schedule is that of
Loshchilov & Hutter, "SGDR", eq. 5, without restarts and down to zero; the batches are ours.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightedit.errors import WeightEditError


@dataclass(frozen=True)
class TrainOptions:
    """What one training run does. A run is resumed with the same options; only `steps` may grow.

    `checkpoint_every`, `max_seconds`, `log_with`, `cpu`, `compile` and `capture` do not say what the run is and may
    change at a resume; where one of the last three does, the run goes on equal to rounding only.

    Attributes:
        steps: optimizer steps, at least 1.
        batch_size: examples per process and micro-step; a step sees batch_size * accumulate * processes examples.
        learning_rate: AdamW's, at its peak.
        weight_decay: AdamW's, on all parameters.
        betas: AdamW's.
        warmup_steps: steps over which the learning rate rises linearly.
        schedule: after the warmup, "constant" or "cosine" (to zero at `steps`; growing `steps` moves the rest of it).
        clip_norm: the largest global gradient norm; 0 = no clipping.
        ema_decay: decay of the average of the weights, in [0, 1); 0 = no average. With it, validation and the best
            weights are those of the average.
        accumulate: micro-steps per step; 2 of B examples equal 1 of 2B to rounding.
        precision: "no" (float32) or "bf16" (autocast of the loss; validation stays float32).
        seed: of the batches, of the generator given to `loss`, and of the global generators while training.
        validate_every: steps between validations; the last step is always validated.
        checkpoint_every: steps between saved states; one is always saved at the end.
        nonfinite_limit: raise NonFiniteError after this many consecutive steps whose gradient or loss is not finite.
        max_seconds: stop at the next step, with a saved state, once this call has run so long; 0 = no limit.
        log_with: the name of an Accelerate tracker, such as "tensorboard"; None = only log.jsonl and the progress bar.
        cpu: train on the CPU even where there is an accelerator.
        compile: torch.compile the loss: fewer passes over memory, after a minute or so of compiling.
        capture: replay every step as one CUDA graph, so that no operation waits for its launch. Needs a CUDA device,
            one process, data that can live on it, and a loss that reads no value back, keeps nothing in Python from
            step to step and draws only from its generator and the device's.
    Raises:
        WeightEditError: naming the first option out of its range.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: str = "constant"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    precision: str = "no"
    seed: int = 0
    validate_every: int = 100
    checkpoint_every: int = 100
    nonfinite_limit: int = 10
    max_seconds: float = 0.0
    log_with: str | None = None
    cpu: bool = False
    compile: bool = False
    capture: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "validate_every", "checkpoint_every", "nonfinite_limit"):
            require_option(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "clip_norm", "max_seconds"):
            value = getattr(self, name)
            require_option(math.isfinite(value) and value >= 0, name, value, "a finite number of at least 0")
        require_option(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a number in [0, 1)")
        require_option(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two numbers in [0, 1)"
        )
        require_option(self.schedule in ("constant", "cosine"), "schedule", self.schedule, "'constant' or 'cosine'")
        require_option(self.precision in ("no", "bf16"), "precision", self.precision, "'no' or 'bf16'")

    @classmethod
    def cosine(cls, steps: int, **others: Any) -> TrainOptions:
        """What the tasks train with: a warm-up and a cosine to zero, weight decay 0.01, gradients of at most norm 1."""
        usual = {"weight_decay": 1e-2, "betas": (0.9, 0.98), "schedule": "cosine", "clip_norm": 1.0}
        return cls(steps=steps, **{**usual, **others})

    def brief(self, steps: int = 4, batch_size: int = 4) -> TrainOptions:
        """The same training in a few small steps, validated and saved half way, to see that everything runs."""
        half = max(1, steps // 2)
        return replace(
            self, steps=steps, batch_size=batch_size, warmup_steps=1, validate_every=half, checkpoint_every=half
        )


def learning_rate(options: TrainOptions, step: int) -> float:
    """The learning rate of step 0, 1, ...: a pure function, so that no scheduler has to be stepped or saved."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class BatchOrder:
    """The examples of every step: consecutive slices of one permutation per epoch, the epochs laid end to end.

    Args:
        length: number of examples.
        size: examples per step, over all processes and micro-steps; it may exceed `length`.
        seed: with the epoch, the seed of its permutation.
    """

    def __init__(self, length: int, size: int, seed: int):
        self.length, self.size, self.seed = length, size, seed
        self._permutations: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Tensor:
        """Indices of step 0, 1, ..., LongTensor [size]: a pure function of (seed, step)."""
        position, stop, pieces = step * self.size, (step + 1) * self.size, []
        while position < stop:
            epoch, start = divmod(position, self.length)
            piece = self._permutation(epoch)[start : start + stop - position]
            pieces.append(piece)
            position += len(piece)
        return torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._permutations = {epoch: torch.randperm(self.length, generator=generator)}
        return self._permutations[epoch]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from named parts (SHA-256), so that neighboring seeds and steps give unrelated streams."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def require_option(holds: bool, name: str, came: object, expected: str) -> None:
    """Raise WeightEditError in the usual order unless `holds`."""
    if not holds:
        raise WeightEditError(f"{name} is {came}; expected {expected}: change it")
