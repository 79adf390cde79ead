"""--weights of a task may be a folder of published weights: here it becomes a weight set, once.

What the options state is checked on the renderings before all is read: weights read under a wrong convention have no
fault that a training would show.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from weightedit.cli.arguments import in_own_words, size_argument
from weightedit.cli.conventions import stated_convention
from weightedit.cli.reading import check_reading
from weightedit.data.inr_files import load_inrs
from weightedit.data.published_sets import PublishedSet, listing, members, published_set
from weightedit.data.weight_set_cards import CARD, SPLITS, read_card
from weightedit.data.weight_sets import save_weight_set
from weightedit.errors import FileFormatError, WeightEditError

_CHECKED = 64  # INRs


@dataclass(frozen=True)
class Published:
    """How a folder of published weights (DWSNets', NFN's, your own: a .pth file per INR) is read; see also `weightedit
    check`. A weight set needs none of it.

    Attributes:
        convention: what the INRs were fitted under: dwsnets, nfn, siren, siren-pytorch, coin or plain.
        size: height and width of the fitted images in pixels, as 28 or 28x32.
        splits: JSON file of the splits; "" for the one in the folder or beside it, or what the names say.
        omega: frequency of every sine layer, where it is not the convention's.
        coordinates: xy or ij, likewise; with ranges as xy,0..1.
        values: range of the fitted images, likewise.
        offset: constant added to the output, likewise.
        activation: what follows every layer but the last, likewise.
        last: what follows the last layer, likewise.
    """

    convention: Literal["plain", "dwsnets", "nfn", "siren", "siren-pytorch", "coin"] | None = None
    size: str = ""
    splits: str = ""
    omega: tuple[float, ...] | None = None
    coordinates: str | None = None
    values: tuple[float, float] | None = None
    offset: float | None = None
    activation: str | None = None
    last: str | None = None

    def weight_set(self, weights: str | Path, place: str | Path, say: Callable[[str], object]) -> str:
        """The folder of a weight set: `weights` itself, or `place`, where one is made of the INR files in `weights`.

        Args:
            weights: folder of a weight set, or of INR files.
            place: where a set is made, or was made of the same files by the same options: it is then taken as it is.
            say: is told what was read.

        Raises:
            WeightEditError: options for a weight set, or INRs that are no pictures as they are read.
            FileFormatError: what published_sets.published_set refuses, or another set in `place`.
        """
        stated = {
            name: list(value) if isinstance(value, tuple) else value  # as the card's JSON has it
            for name, value in asdict(self).items()
            if value not in (None, "")
        }
        if not Path(weights).is_dir() or (Path(weights) / CARD).is_file():
            if stated:
                raise WeightEditError(
                    f"got --{next(iter(stated))} for {weights}, which is no folder of INR files; expected it for such "
                    "alone: leave it out."
                )
            return str(weights)
        with self._own_words():
            return self._made(weights, Path(place), stated, say)

    def _made(
        self, weights: str | Path, place: Path, stated: Mapping[str, object], say: Callable[[str], object]
    ) -> str:
        known = listing(weights, self.splits or None)
        about = {"source": str(weights), "listing": known, "read as": stated}
        if (place / CARD).is_file():
            facts = read_card(place)["facts"]
            if {name: facts.get(name) for name in about} != about:
                raise FileFormatError(
                    f"{place} is a weight set of other files, or of these read in another way; expected the one of "
                    f"{weights}: choose another --out, or remove it."
                )
            return str(place)
        found = self._read(weights)
        place.parent.mkdir(parents=True, exist_ok=True)
        stack = found.whole.stack
        facts = {**about, "splits": found.split, "left out": found.left_out, "images": "renderings of the INRs"}
        save_weight_set(place, stack, found.whole.images, facts)
        assert stack.split is not None and stack.index is not None
        counts = ", ".join(f"{int((stack.split == n).sum()):,} {name}" for n, name in enumerate(SPLITS))
        say(
            f"{weights}: {len(stack):,} INRs of {len(stack.index.unique()):,} images ({counts}; splits: {found.split}) "
            f"and {found.left_out:,} files in no split; weight set written to {place}"
        )
        return str(place)

    @contextmanager
    def _own_words(self) -> Iterator[None]:
        """A block whose errors come out in the words of the command line."""
        try:
            yield
        except argparse.ArgumentTypeError as error:
            raise WeightEditError(f"--size {error}.") from None
        except WeightEditError as error:
            raise type(error)(in_own_words(str(error), argparse.Namespace(**asdict(self)))) from error

    def _read(self, weights: str | Path) -> PublishedSet:
        size = size_argument(self.size) if self.size else None
        convention = stated_convention(argparse.Namespace(**asdict(self)), size)
        few = load_inrs(members(weights, self.splits or None)[0][:_CHECKED], convention, size=size)
        check = check_reading(few)
        if check.ok is False:
            raise WeightEditError(
                f"got INRs in {weights} that render as no pictures: {check.figure} (an option of weightedit check, for "
                "one of the files)."
            )
        return published_set(weights, convention, size=size, splits=self.splits or None, progress=True)
