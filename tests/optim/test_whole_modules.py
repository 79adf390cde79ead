"""A ResNet, a vision transformer and a small GPT, optimized end to end by the shipped rule, beside AdamW."""

import logging
import statistics

import pytest
import torch
from torch.nn import functional

from tests.modules import GPT, ResNet, ViT
from weightedit.optim.optimizer import LearnedOptimizer

NETS = {
    "ResNet": lambda: ResNet((16, 32, 64, 128), 10, 1),
    "ViT": lambda: ViT(width=64, depth=4, heads=4, size=8, patch=2, classes=10, channels=1),
    "GPT": lambda: GPT(vocabulary=128, width=64, depth=4, heads=4, context=32),
}


def digits():
    """scikit-learn's handwritten digits, [N, 1, 8, 8] in 0..1, and what they are."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


def text():
    """Characters of Python's own manual."""
    from pydoc_data.topics import topics

    return torch.tensor([min(ord(letter), 127) for letter in "".join(topics[key] for key in sorted(topics))][:200000])


def problem(name, seed=0):
    """A network, and its loss on a random batch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = NETS[name]()
    source = torch.Generator().manual_seed(1)
    if name == "GPT":
        letters = text()

        def loss():
            starts = torch.randint(len(letters) - 33, (32,), generator=source)
            rows = torch.stack([letters[start : start + 33] for start in starts])
            return functional.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    else:
        images, labels = digits()

        def loss():
            rows = torch.randint(len(images), (64,), generator=source)
            return functional.cross_entropy(net(images[rows]), labels[rows])

    return net, loss


def curve(optimizer, loss, steps):
    """The losses of so many steps."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        found.append(now.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "fraction", "behind", "seeds"),
    [
        ("ResNet", 40, 0.1, 1.5, 4),  # one seed says little: 0.09 to 0.16, 0.07 to 0.14 by the rule as it was
        ("ViT", 60, 0.3, 1.0, 1),
        ("GPT", 60, 0.12, 1.0, 1),
    ],
)
def test_a_whole_module_is_trained_end_to_end(name, steps, fraction, behind, seeds, caplog):
    """Far below its first loss, no slower than AdamW at its default but on the ResNet, where it is by about a quarter
    (small-classifier's card); no parameter is left behind, or left to AdamW."""
    ours, adam = [], []
    for seed in range(seeds):
        net, loss = problem(name, seed)
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        with caplog.at_level(logging.WARNING):
            optimizer = LearnedOptimizer(net)
        assert not any(group["outside"] for group in optimizer.param_groups) and not caplog.text
        ours.append(curve(optimizer, loss, steps))
        assert all(not torch.equal(p, before[k]) for k, p in net.named_parameters())
        other, same = problem(name, seed)
        adam.append(curve(torch.optim.AdamW(other.parameters(), lr=1e-3), same, steps))
    first, reached, beside = (
        statistics.fmean(loss for losses in found for loss in losses[part])
        for found, part in ((ours, slice(1)), (ours, slice(-5, None)), (adam, slice(-5, None)))
    )
    assert reached < fraction * first and reached < behind * beside, (reached, beside, first)
