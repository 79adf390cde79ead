"""Compare frequencies of the first layer by what a fit makes of a chord, of drums and of vowels with a hiss.

    python tasks/compare_sounds.py --out runs/sounds

Sounds are functions of the time here, so that they are known between the samples, too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro

from weightedit.cli.main import told_in_one_line
from weightedit.editing.sample_fitting import fit_samples
from weightedit.inr.convention import SAMPLES
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places
from weightedit.training.measured import Measured
from weightedit.training.report import table, write_result


@dataclass(frozen=True)
class Config:
    """What the fit of samples makes of three sounds, a second at 8 kHz, by the frequency of the first layer.

    Given are the least and the largest SNR in dB over the seeds, on the samples and halfway between them, where each
    sound is known too. Sounds done are kept. Written: sounds.json, sounds.md.

    Attributes:
        frequencies: of the first layer.
        seeds: of the initializations.
        steps: of every fit.
        rate: samples a second.
        out: folder of what is written.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    frequencies: tuple[float, ...] = (500.0, 1000.0, 3000.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 60
    rate: int = 8000
    out: str = "runs/sounds"
    smoke: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Measure what is not there yet; write sounds.{json,md}; returns the rows."""
        if self.smoke:
            return replace(self, frequencies=(50.0,), seeds=(0,), steps=2, rate=200, smoke=False).run()
        about = {name: value for name, value in asdict(self).items() if name not in ("frequencies", "out")}
        measured, rows = Measured(Path(self.out) / "measured.json", about), []
        for name, first in product(SOUNDS, self.frequencies):
            found = measured(f"{name}, {first:g}", partial(self.both, name, first))
            ends = [f"{min(part):.1f} to {max(part):.1f}" for part in zip(*found, strict=True)]
            rows.append({"sound": name, "first frequency": f"{first:g}", "SNR": ends[0], "between": ends[1]})
        text = table(list(rows[0]), [list(row.values()) for row in rows])
        print(text)
        write_result(self.out, "sounds", rows, text)
        return rows

    def both(self, name: str, first: float) -> list[tuple[float, float]]:
        """SNR on and between the samples, of every seed."""
        return [self.snr(name, first, seed) for seed in self.seeds]

    def snr(self, name: str, first: float, seed: int) -> tuple[float, float]:
        """Of one fit."""
        moments = torch.arange(2 * self.rate - 1) / (2 * self.rate)
        where, values = places((len(moments),), SAMPLES), SOUNDS[name](moments).unsqueeze(1)
        options = {"max_steps": self.steps, "target_psnr": 90.0, "generator": torch.Generator().manual_seed(seed)}
        sound, known = Samples(where[::2], values[::2]), replace(SAMPLES, omega=(first, 30.0))
        found = fit_samples(sound, convention=known, **options).stack.at(where)[0]
        on, between = (
            float(10 * (values[part].square().mean() / (found - values)[part].square().mean()).log10())
            for part in (slice(None, None, 2), slice(1, None, 2))
        )
        return on, between


def chord(moments: torch.Tensor) -> torch.Tensor:
    """Three decaying notes, as all sounds at times in seconds."""
    return torch.exp(-2 * moments) * sum(0.3 * torch.sin(math.tau * note * moments) for note in (220.0, 277.0, 330.0))


def hiss(moments: torch.Tensor) -> torch.Tensor:
    """Noise from 1.5 to 3 kHz, as 60 sines, so that it is known at any time."""
    pitch, phase = torch.rand(2, 60, 1, generator=torch.Generator().manual_seed(1))
    return torch.sin(math.tau * ((1500 + 1500 * pitch) * moments + phase)).mean(0) * math.sqrt(60)


def drums(moments: torch.Tensor) -> torch.Tensor:
    """Four beats whose pitch falls, each with a decaying hiss after it."""
    sound = torch.zeros_like(moments)
    for beat in (0.0, 0.25, 0.5, 0.75):
        since, later = (moments - beat).clamp(min=0), (moments - beat - 0.125).clamp(min=0)
        fall = 50 * since + 20 * (1 - torch.exp(-30 * since))
        sound += 0.6 * torch.sin(math.tau * fall) * torch.exp(-12 * since)
        sound += 0.3 * (later > 0) * hiss(moments) * torch.exp(-40 * later)
    return sound


def vowels(moments: torch.Tensor) -> torch.Tensor:
    """a, i and u: a buzz of falling pitch through three formants each; a hiss and a chirp between them."""
    turns, sound = 130 * moments - 15 * moments.square(), torch.zeros_like(moments)

    def during(start: float, end: float) -> torch.Tensor:
        return torch.sigmoid(200 * (moments - start)) * torch.sigmoid(200 * (end - moments))

    spoken = (((730, 1090, 2440), 0.05, 0.3), ((270, 2290, 3010), 0.4, 0.62), ((300, 870, 2240), 0.7, 0.95))
    for formants, start, end in spoken:
        for harmonic in range(1, 25):
            parts = zip(formants, (0.25, 0.12, 0.06), strict=True)
            loud = sum(size / (1 + ((130 * harmonic - formant) / 90) ** 2) for formant, size in parts)
            sound += loud * during(start, end) * torch.sin(math.tau * harmonic * turns + harmonic**2)
    chirp = torch.sin(math.tau * (500 * moments + 7500 * (moments - 0.63).square()))
    return sound + 0.15 * during(0.31, 0.39) * hiss(moments) + 0.3 * during(0.63, 0.69) * chirp


SOUNDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"chord": chord, "drums": drums, "vowels": vowels}


if __name__ == "__main__":
    sys.exit(told_in_one_line("compare_sounds", lambda: tyro.cli(Config, description=__doc__).run()))
