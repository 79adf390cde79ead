"""LearnedOptimizer inside other people's loops: two processes, trainers that make the optimizer or own the step."""

import inspect
import json
from functools import partial

import pytest
import torch
from torch import nn

from tests.processes import start
from tests.rules import Recorder, TinyRule
from weightedit.errors import WeightEditError
from weightedit.optim.hand_designed import Adam
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.optimizer import LearnedOptimizer, optimizer_factory

PROGRAM = "tests/programs/optimize_network.py"
X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()


class Model(nn.Module):
    """With a loss in its output, as Hugging Face's models have."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1)

    def forward(self, x, labels):
        output = self.last(self.norm(self.first(x)).relu())
        return {"loss": (output - labels).square().mean(), "logits": output}


def test_two_processes_are_one_with_all_the_data(tmp_path):
    """The rule reads the loss too, of which each process knows a half."""
    figures = []
    for count in (1, 2):
        start(PROGRAM, tmp_path / f"{count}.json", processes=count).succeed()
        figures.append(json.loads((tmp_path / f"{count}.json").read_text()))
    one, two = figures
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["drift"] == 0.0
    torch.testing.assert_close(torch.tensor(two["weights"]), torch.tensor(one["weights"]))
    assert "0.weight as a" in two["refusal"] and "train with DDP instead of FSDP" in two["refusal"]


@pytest.fixture(name="two_processes")
def _two_processes():
    """A group of two processes of which the other is imagined."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
def test_a_part_of_the_parameters_is_for_rules_that_look_at_no_other():
    """As ZeroRedundancyOptimizer gives every process one; a rule that reads the graph would read zeros for the rest."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, other = Model(), Model()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), LearnedOptimizer, rule=Adam(1e-2), net=model)
    plain = LearnedOptimizer(other, Adam(1e-2))
    model(X, Y)["loss"].backward()
    other(X, Y)["loss"].backward()
    optimizer.step()
    plain.step()
    own = [p for group in optimizer.optim.param_groups for p in group["params"]]
    moved = [(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True) if any(p is o for o in own)]
    assert 0 < len(moved) < len(list(model.parameters()))
    torch.testing.assert_close(*map(list, zip(*moved, strict=True)), rtol=0, atol=0)
    with pytest.raises(WeightEditError, match="MetanetRule in a ZeroRedundancyOptimizer of 2 processes.*with DDP"):
        ZeroRedundancyOptimizer(model.parameters(), LearnedOptimizer, rule=MetanetRule(), net=model)


# Imitations, as plain as their originals are long; the originals below, where they are installed.


def trainer_groups(model):
    """Two groups, and decay only for matrices, as Hugging Face's Trainer makes them."""
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
    others = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]


@pytest.mark.parametrize("door", ["factory", "class"])
def test_a_loop_like_hugging_faces_trainer(door):
    model = Model()
    kwargs = {"rule": Adam(1e-2), "lr": 0.9}
    if door == "factory":
        assert not (inspect.isclass(optimizer_factory) and issubclass(optimizer_factory, torch.optim.Optimizer))
        optimizer = optimizer_factory()(model, **kwargs)
    else:
        optimizer = LearnedOptimizer(trainer_groups(model), net=model, **kwargs)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 20))
    losses = []
    for _ in range(20):
        for x, y in zip(X.split(16), Y.split(16), strict=True):  # gradient accumulation
            loss = model(x, labels=y)["loss"] / 2
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0] and optimizer.param_groups[0]["lr"] == 0.0


def test_a_loop_like_lightnings():
    """The closure does everything, the loop nothing; hooks may stand between it and the step."""
    model, rule = Model(), Recorder()
    optimizer = LearnedOptimizer(model, rule, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model(X, Y)["loss"]
        loss.backward()
        return loss

    def wrapped(closure):
        result = closure()
        assert all(p.grad is not None for p in model.parameters())
        return result

    losses = [optimizer.step(closure=partial(wrapped, closure)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert [float(loss) for loss in losses] == [float(loss) for loss in rule.losses]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i], "labels": Y[i]}


@pytest.mark.parametrize("door", ["factory", "class", "instance"])
def test_hugging_faces_trainer(tmp_path, door):
    import transformers

    if door == "factory" and not hasattr(transformers.trainer, "is_optimizer_factory"):
        pytest.skip("factories are known to transformers 5.2 and newer")
    model = Model()
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=30, per_device_train_batch_size=16, use_cpu=True, report_to=[], logging_steps=10,
        weight_decay=0.01, gradient_accumulation_steps=2, save_steps=15, disable_tqdm=True,
        eval_strategy="steps", eval_steps=15,
    )  # fmt: skip
    kwargs = {"rule": MetanetRule() if door == "instance" else Adam(1e-2), "lr": 1.0}
    doors = {
        "factory": {
            "optimizer_cls_and_kwargs": (optimizer_factory, {**kwargs, "weight_decay": arguments.weight_decay})
        },
        "class": {"optimizer_cls_and_kwargs": (LearnedOptimizer, {**kwargs, "net": model})},
        "instance": {"optimizers": (LearnedOptimizer(model, **kwargs, weight_decay=0.02), None)},
    }
    decays = {"factory": [0.01], "class": [0.01, 0.0], "instance": [0.02]}[door]  # the class gets the Trainer's groups
    trainer = transformers.Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), **doors[door])
    trainer.train()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == decays
    assert trainer.optimizer.param_groups[0]["at_average"] == (door == "instance")  # evaluated last, and saved there
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    whole = [p.detach().clone() for p in model.parameters()]
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    torch.testing.assert_close([p.detach() for p in model.parameters()], whole, rtol=0, atol=0)


def test_lightning(tmp_path):
    import lightning

    rule = TinyRule()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses = Model(), []

        def training_step(self, batch, _):
            loss = self.model(batch["x"], batch["labels"])["loss"]
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = LearnedOptimizer(self, rule)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.99)]

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, gradient_clip_val=1.0, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Rows(), 16))
    assert module.losses[-1] < module.losses[0]
    assert int(next(iter(trainer.optimizers[0].state.values()))["step"]) == 10
