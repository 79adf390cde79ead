"""Make a weight set: one SIREN (or several) per image, from independent random initializations.

    python tasks/fit_inrs.py --images ylecun/mnist --out runs/mnist-inrs

Images come through `datasets` (a hub name, a folder of parquet files or of pictures). The training split is divided
into train and validation by source image with a recorded seed; the test split stays the test split. Work is done in
shards, each a function of (seed, shard) alone: the result does not depend on the number of workers, and a run that was
stopped goes on where it was. INRs that missed the target PSNR are left out and reported.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.data.images import ImageSet
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.inr_fitting import ImageSource, fit_set
from weightedit.data.weight_sets import save_weight_set
from weightedit.errors import WeightEditError
from weightedit.files.saving import claimed
from weightedit.inr.fitting import FitOptions
from weightedit.inr.stack import INRStack
from weightedit.training.plan import derive_seed
from weightedit.training.workers import in_processes


@dataclass(frozen=True)
class Config:
    """What to fit.

    Attributes:
        source: the images; its seed is that of the initializations, too.
        out: folder of the weight set; its parent is made if needed.
        repeats: INRs per image, each from its own initialization (in all three splits).
        hidden: hidden widths of the SIREN.
        init: "siren" or "dwsnets".
        method: "fast", "smooth" or "adam", see weightedit/inr/fitting.py.
        target_psnr: dB; None is what this initialization, method and size reach, see FitOptions.
        shard: images per shard.
        workers: processes, each on one thread; 0 for one per core on a CPU, one elsewhere.
        device: where to fit, as PyTorch names it: cpu, cuda, cuda:1.
        smoke: a few dozen images, to see that everything runs.
    """

    source: tyro.conf.OmitArgPrefixes[ImageSource] = field(default_factory=ImageSource)
    out: str = "runs/mnist-inrs"
    repeats: int = 1
    hidden: tuple[int, ...] = (32, 32)
    init: str = "siren"
    method: str = "fast"
    target_psnr: float | None = None
    shard: int = 1000
    workers: int = 0
    device: str = "cpu"
    smoke: bool = False


def main(config: Config) -> Path:
    """Fit, save, and print a summary; returns the folder of the weight set."""
    if config.smoke:
        config = replace(config, source=replace(config.source, limit=48, validation=16), shard=32, workers=1)
    if config.repeats < 1 or config.shard < 1:
        raise WeightEditError(
            f"got repeats {config.repeats}, shard {config.shard}; expected at least 1 each: change them."
        )
    out, started = Path(config.out), time.perf_counter()
    parts = out.with_name(f"{out.name}.parts-{derive_seed(*_identity(config)):016x}")
    parts.mkdir(parents=True, exist_ok=True)
    with claimed(parts):
        make_set(config, out, parts)
    print(f"{time.perf_counter() - started:.0f} s")
    return out


def make_set(config: Config, out: Path, parts: Path) -> None:
    """Fit in the folder `parts`, save in `out`, and print a summary."""
    images, split = config.source.read()
    shards = list(torch.arange(len(images)).split(config.shard))
    run_shards(config, images, split, shards, parts)
    stacks = [load_inrs(parts / f"{number:05d}.safetensors") for number in range(len(shards))]
    stack = INRStack.concatenate(stacks)
    size = (images.images.shape[2], images.images.shape[3])
    target = FitOptions(init=config.init, method=config.method, target_psnr=config.target_psnr).target(size)
    if not len(stack):
        raise WeightEditError(
            f"none of {len(images)} images reached {target:g} dB; expected some: lower --target-psnr, or take wider "
            f"--hidden. What was fitted is in {parts}."
        )
    assert stack.index is not None and stack.psnr is not None and stack.split is not None
    position = {int(index): row for row, index in enumerate(images.index.tolist())}
    rows = torch.tensor([position[int(index)] for index in stack.index.tolist()])
    missing = sorted(set(images.index.tolist()) - set(stack.index.tolist()))
    facts = {"config": asdict(config), "split_seed": config.source.seed, "images_missed": missing}
    save_weight_set(out, stack, images.images[rows], facts, overwrite=True)
    shutil.rmtree(parts)
    counts = {name: int((stack.split == number).sum()) for number, name in enumerate(("train", "validation", "test"))}
    print(f"{out}: {len(stack)} INRs ({counts}), PSNR {stack.psnr.min():.2f} to {stack.psnr.max():.2f} dB")
    print(f"images that missed {target:g} dB and were left out: {len(missing)} {missing[:20]}")


def _identity(config: Config) -> tuple[str, ...]:
    """What decides the content of the shards."""
    return tuple(
        f"{name}={value}" for name, value in asdict(config).items() if name not in ("out", "workers", "device")
    )


def run_shards(config: Config, images: ImageSet, split: Tensor, shards: list[Tensor], parts: Path) -> None:
    """Fit every shard that is not there yet, in `workers` processes."""
    jobs = [
        (config, number, images[rows], split[rows], parts / f"{number:05d}.safetensors")
        for number, rows in enumerate(shards)
        if not (parts / f"{number:05d}.safetensors").exists()
    ]
    cores = os.cpu_count() or 1 if config.device == "cpu" else 1
    workers = min(config.workers or cores, max(len(jobs), 1))
    done = in_processes(fit_shard, jobs, workers)
    for _ in tqdm(done, total=len(shards), initial=len(shards) - len(jobs), desc="shards", unit="shard"):
        pass


def fit_shard(job: tuple[Config, int, ImageSet, Tensor, Path]) -> None:
    """Fit one shard and write it; the INRs that missed the target are left out."""
    config, number, images, split, path = job
    generator = torch.Generator().manual_seed(derive_seed(config.source.seed, "fit", number))
    options = FitOptions(method=config.method, init=config.init, target_psnr=config.target_psnr)
    made = fit_set(
        images,
        split,
        hidden=config.hidden,
        repeats=config.repeats,
        options=options,
        generator=generator,
        device=config.device,
    )
    save_inrs(made.stack, path)


if __name__ == "__main__":
    sys.exit(told_in_one_line("fit_inrs", lambda: main(tyro.cli(Config, description=__doc__))))
