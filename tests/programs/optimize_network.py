"""Ten steps of a learned rule on one network, on one process or several: for the test that launches it twice.

usage: optimize_network.py OUT.json
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from tests.rules import TinyRule
from weightedit.errors import WeightEditError
from weightedit.optim.optimizer import LearnedOptimizer


def refusal_of_a_shard(net: nn.Module) -> str:
    """The error for a network whose parameters are spread over processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    net[0].weight = nn.Parameter(distribute_tensor(net[0].weight.detach(), mesh, [Shard(0)]))
    try:
        LearnedOptimizer(net, TinyRule())
    except WeightEditError as error:
        return str(error)
    return ""


def main(out: str) -> None:
    """Run it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    accelerator = Accelerator()
    count, rank = accelerator.num_processes, accelerator.process_index
    model, optimizer = accelerator.prepare(net, LearnedOptimizer(net, TinyRule()))
    part = x.split(len(x) // count)[rank]
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = model(part).square().mean()
        accelerator.backward(loss)
        losses.append(loss.item())
        return loss

    for _ in range(10):
        optimizer.step(closure)
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    everyone = accelerator.gather(weights[None]).reshape(count, -1)
    drift = (everyone - everyone[0]).abs().max().item()
    refusal = refusal_of_a_shard(net) if count > 1 else ""
    if accelerator.is_main_process:
        figures = {"processes": count, "weights": weights.tolist(), "drift": drift, "refusal": refusal}
        Path(out).write_text(json.dumps(figures))
    if count > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
