"""CNN zoos: many trained checkpoints of small CNNs of one architecture, and how well each of them did.

    folder/train.parquet, validation.parquet, test.parquet, card.json

One row per checkpoint: `weights` (all parameters in the spec's order, float32), `network` (all checkpoints of one CNN
have the same number and stand in one split), and facts under the column names of the public Small CNN Zoo: step,
train_accuracy, test_loss, config.learning_rate, ... (losses here are without the L2 penalty, which is in theirs). The
card holds the spec, counts and checksums.

Here: the zoo in memory and in these files. Not here: training one (cnn_fitting.py) and the public files
(small_cnn_zoo.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from torch import Tensor

from weightedit.data.weight_set_tables import as_tensor, first_rows, open_parquet, unflatten
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files import schema
from weightedit.files.reading import read_json, refusing, shortened
from weightedit.files.saving import new_file
from weightedit.files.schema import Count, conform
from weightedit.network.spec import NetworkSpec, Params

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "weightedit-cnn-zoo"
VERSION = 1
CARD = "card.json"
SPLITS = ("train", "validation", "test")
Facts = dict[str, Tensor | tuple[str, ...]]
_WORD = 4096  # characters of a fact


class Split(TypedDict):
    """What a card says of one Parquet file: checkpoints, networks, SHA-256."""

    count: Count
    networks: Count
    sha256: str


class Card(TypedDict):
    """What a card holds."""

    format: Literal["weightedit-cnn-zoo"]
    version: Literal[1]
    spec: dict[str, Any]
    splits: dict[str, Split]
    facts: schema.Facts


@dataclass(frozen=True)
class CNNZoo:
    """Checkpoints of one architecture.

    Args:
        spec: their architecture and activation.
        params: stacked, [N, ...].
        network: int64 [N], the number of the CNN that a checkpoint is of.
        facts: per checkpoint, by name: float64 [N] or N strings. test_accuracy in [0, 1] is what is predicted.

    Raises:
        ParamsError: parameters that do not fit the spec or are not finite.
        WeightEditError: facts or network numbers of other lengths or types.
    """

    spec: NetworkSpec
    params: Params
    network: Tensor
    facts: Facts

    def __post_init__(self) -> None:
        count = self.spec.check_params(self.params)
        right = [self.network.dtype == torch.int64 and tuple(self.network.shape) == (count,)]
        for fact in self.facts.values():
            text = not isinstance(fact, Tensor)
            right.append(len(fact) == count if text else fact.dtype == torch.float64 and tuple(fact.shape) == (count,))
        if not all(right):
            kinds = {
                name: (f.dtype, tuple(f.shape)) if isinstance(f, Tensor) else len(f) for name, f in self.facts.items()
            }
            raise WeightEditError(
                f"got network {self.network.dtype} {tuple(self.network.shape)} and facts {kinds} for {count} "
                "checkpoints; expected int64 (N,), and float64 (N,) or N strings each."
            )

    def __len__(self) -> int:
        return len(self.network)

    def __getitem__(self, which: slice | Tensor) -> CNNZoo:
        """The chosen checkpoints, by a slice or a one-dimensional tensor of integers or booleans."""
        rows = torch.arange(len(self))[which]
        facts: Facts = {
            name: fact[rows] if isinstance(fact, Tensor) else tuple(fact[i] for i in rows.tolist())
            for name, fact in self.facts.items()
        }
        return CNNZoo(self.spec, {k: p[rows] for k, p in self.params.items()}, self.network[rows], facts)

    def numbers(self, name: str) -> Tensor:
        """A fact as float64 [N]; raises WeightEditError where there is no such fact or it is text."""
        fact = self.facts.get(name)
        if not isinstance(fact, Tensor):
            known = ", ".join(key for key, value in self.facts.items() if isinstance(value, Tensor))
            raise WeightEditError(f"got the fact {name!r}; expected one of {known}.")
        return fact

    def with_params(self, params: Params) -> CNNZoo:
        """The same facts about other parameters (rescaled ones, say)."""
        return CNNZoo(self.spec, params, self.network, self.facts)

    def last(self) -> CNNZoo:
        """The latest checkpoint of every network."""
        step = self.numbers("step")
        latest: dict[int, int] = {}
        for row, network in enumerate(self.network.tolist()):
            if network not in latest or step[row] > step[latest[network]]:
                latest[network] = row
        return self[torch.tensor(sorted(latest.values()), dtype=torch.int64)]


def concatenate_zoos(zoos: Sequence[CNNZoo]) -> CNNZoo:
    """One zoo of the checkpoints of several. Raises WeightEditError unless specs and names of facts agree."""
    first = zoos[0]
    if any(zoo.spec != first.spec or set(zoo.facts) != set(first.facts) for zoo in zoos):
        raise WeightEditError("got zoos of different specs or facts; expected the same in all: join like with like.")
    facts: Facts = {}
    for name, fact in first.facts.items():
        parts = [zoo.facts[name] for zoo in zoos]
        if isinstance(fact, Tensor):
            facts[name] = torch.cat([part for part in parts if isinstance(part, Tensor)])
        else:
            facts[name] = tuple(str(value) for part in parts for value in part)
    params = {name: torch.cat([zoo.params[name] for zoo in zoos]) for name in first.params}
    return CNNZoo(first.spec, params, torch.cat([zoo.network for zoo in zoos]), facts)


def split_by_network(zoo: CNNZoo, fractions: tuple[float, float] = (0.15, 0.25), seed: int = 0) -> dict[str, CNNZoo]:
    """train, validation and test, all checkpoints of a CNN in one of them.

    Args:
        zoo: at least three networks.
        fractions: of the networks, for validation and test.
        seed: of the choice.

    Raises WeightEditError where a split would be empty.
    """
    networks = zoo.network.unique()
    order = torch.randperm(len(networks), generator=torch.Generator().manual_seed(seed))
    held = [round(fraction * len(networks)) for fraction in fractions]
    sizes = [len(networks) - sum(held), *held]
    if min(sizes) < 1:
        raise WeightEditError(
            f"got fractions {fractions} of {len(networks)} networks, {sizes} for {SPLITS}; expected at least one "
            "network in each: take more networks."
        )
    parts = networks[order].split(sizes)
    return {name: zoo[torch.isin(zoo.network, part)] for name, part in zip(SPLITS, parts, strict=True)}


def save_zoo(folder: str | Path, splits: Mapping[str, CNNZoo], facts: Mapping[str, Any]) -> None:
    """Write the splits and, last, the card, each by a temporary name: a folder with a card is whole (see saving.py).

    Args:
        folder: made if needed; must hold no other zoo.
        splits: of one spec.
        facts: for the card: what a reader should know, JSON values.

    Raises WeightEditError on a folder that has a card, splits that share a network, or facts that are no JSON.
    """
    folder = Path(folder)
    networks = [set(zoo.network.tolist()) for zoo in splits.values()]
    if len(set().union(*networks)) != sum(map(len, networks)) or len({zoo.spec for zoo in splits.values()}) != 1:
        raise WeightEditError(
            "got splits that share a network or differ in spec; expected all checkpoints of a CNN in one split: use "
            "split_by_network."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / CARD) as fresh:
        if (folder / CARD).exists():
            raise WeightEditError(f"{folder} already holds {CARD}; expected a new folder: choose another one.")
        stated = {}
        for name, zoo in splits.items():
            write_zoo_table(zoo, folder / f"{name}.parquet")
            digest = hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()
            stated[name] = {"count": len(zoo), "networks": len(zoo.network.unique()), "sha256": digest}
        spec = next(iter(splits.values())).spec
        card = {"format": FORMAT, "version": VERSION, "spec": spec.to_dict(), "splits": stated, "facts": dict(facts)}
        try:
            text = json.dumps(card, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise WeightEditError(
                f"facts {facts!r} are no JSON ({error}); expected strings, numbers, lists, dicts."
            ) from error
        fresh.write_text(text, encoding="utf-8")


def load_zoo(folder: str | Path, split: str) -> CNNZoo:
    """One split of a saved zoo. Raises FileFormatError on a missing, foreign or altered card or file."""
    folder = Path(folder)
    card = read_zoo_card(folder)
    if split not in card["splits"]:
        raise FileFormatError(f"{folder} has no split {split!r}; expected one of {', '.join(card['splits'])}.")
    path = folder / f"{split}.parquet"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != card["splits"][split]["sha256"]:
        raise FileFormatError(f"{path} is missing or not the file the card states; copy the zoo again.")
    with refusing(folder / CARD, "a card: make the zoo again"):
        spec = NetworkSpec.from_dict(card["spec"])
    return read_zoo_table(path, spec)


def read_zoo_card(folder: str | Path) -> Card:
    """The card of a zoo. Raises FileFormatError where there is none of this format and version."""
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileFormatError(
            f"there is no {path}; expected the card of a CNN zoo: check the path, or make a zoo with "
            "tasks/make_cnn_zoo.py."
        )
    card = read_json(path)
    if (card.get("format"), card.get("version")) != (FORMAT, VERSION):
        raise FileFormatError(
            f"{path} is not of the format {FORMAT!r}, version {VERSION}, which is expected here; make one with "
            "tasks/make_cnn_zoo.py."
        )
    return conform(Card, card, str(path))


def write_zoo_table(zoo: CNNZoo, path: Path) -> None:
    """Write the checkpoints as one Parquet file: whole, or not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    weights = torch.cat([zoo.params[name].flatten(1) for name in zoo.spec.param_shapes()], 1)
    flat = pa.array(weights.float().contiguous().reshape(-1).numpy())
    columns: dict[str, Any] = {"weights": pa.FixedSizeListArray.from_arrays(flat, weights.shape[1])}
    columns["network"] = pa.array(zoo.network.numpy())
    for name, fact in zoo.facts.items():
        columns[name] = pa.array(fact.numpy()) if isinstance(fact, Tensor) else pa.array(fact, pa.string())
    with new_file(path) as fresh:
        pq.write_table(pa.table(columns), fresh, compression="zstd", use_dictionary=False)


def read_zoo_table(path: Path, spec: NetworkSpec) -> CNNZoo:
    """The checkpoints of one Parquet file. Raises FileFormatError unless it is one of this architecture."""
    import pyarrow as pa

    with refusing(path, "a zoo table: copy it again"):
        with open_parquet(path) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            weights, network = kinds.pop("weights"), kinds.pop("network")
            text = [name for name, kind in kinds.items() if pa.types.is_string(kind)]
            right = pa.types.is_fixed_size_list(weights) and weights.value_type == pa.float32()
            right &= network == pa.int64() and all(kinds[name] == pa.float64() for name in kinds.keys() - set(text))
            if not right or len(kinds) + 2 != len(file.schema_arrow):
                raise FileFormatError(
                    f"{path} has columns of {shortened(list(map(str, file.schema_arrow.types)))}; expected lists of "
                    "float for the weights, int64 for the network, double or string for facts: make the zoo again."
                )
            if weights.list_size != spec.parameter_count:
                raise FileFormatError(
                    f"{path} has rows of {weights.list_size} weights; expected {spec.parameter_count} as the spec says."
                )
        with open_parquet(path, text) as file:
            table = first_rows(file, path, file.metadata.num_rows)
        facts: Facts = {name: as_tensor(table[name]) for name in kinds.keys() - set(text)}
        facts |= {name: _words(table[name], path) for name in text}
        facts = {name: facts[name] for name in kinds}
        return CNNZoo(spec, unflatten(as_tensor(table["weights"]), spec), as_tensor(table["network"]), facts)


def _words(column: pa.ChunkedArray, path: Path) -> tuple[str, ...]:
    """A column of dictionaries as strings; each of its few values is made once."""
    found: list[str] = []
    for chunk in column.chunks:
        words = [str(word) for word in chunk.dictionary.to_pylist()]
        if any(len(word) > _WORD for word in words):
            raise FileFormatError(f"{path} has a text of more than {_WORD} characters; expected words: copy it again.")
        found += [words[at] for at in chunk.indices.to_pylist()]
    return tuple(found)
