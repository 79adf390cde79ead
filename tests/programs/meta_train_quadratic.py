"""Meta-train a tiny rule on quadratics: `particles folder`; process 0 writes the gradient of every outer step."""

import json
import sys
from pathlib import Path

import torch

from tests.rules import TinyRule
from weightedit.metatrain.estimators import PES, Horizons
from weightedit.metatrain.optimizee import Quadratic
from weightedit.metatrain.unroll import Unroll
from weightedit.training.loop import TrainOptions, train

sys.path.append(str(Path(__file__).parents[2] / "tasks"))
from meta_train import MetaLoss, OuterSteps  # noqa: E402

if __name__ == "__main__":
    particles, folder = int(sys.argv[1]), Path(sys.argv[2])
    rule, gradients = TinyRule().double(), []
    unroll = Unroll(rule, Quadratic((2, 3), dtype=torch.float64))
    estimators = [PES(unroll, Horizons(3, 9), truncation, particles) for truncation in (3, None)]

    def validate(model):
        """After every outer step, whose averaged gradient the weights still have."""
        gradients.append(model.weights.grad.tolist())
        return 0.0

    carried = MetaLoss(estimators)
    options = TrainOptions(steps=8, batch_size=1, learning_rate=1e-2, clip_norm=0.0, validate_every=1, cpu=True)
    result = train(rule, carried, OuterSteps(), validate, folder / "run", options, carried=carried)
    if result.main:
        (folder / "gradients.json").write_text(json.dumps(gradients))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
