"""--weights of a task may be a folder of published weights: here it becomes a weight set, once.

What the options state is checked on the renderings before all is read: weights read under a wrong convention have no
fault that a training would show.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from weightedit.cli.arguments import in_own_words, size_argument
from weightedit.cli.conventions import stated_convention
from weightedit.cli.reading import check_reading
from weightedit.data.inr_files import inr_paths, load_inrs
from weightedit.data.published_sets import PublishedSet, listing, published_set
from weightedit.data.weight_set_cards import CARD, SPLITS, read_card
from weightedit.data.weight_sets import save_weight_set
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.inr.convention import Convention

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
        stated = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        if not Path(weights).is_dir() or (Path(weights) / CARD).is_file():
            if stated:
                raise WeightEditError(
                    f"got --{next(iter(stated))} for {weights}, which is no folder of INR files; expected it for such "
                    "alone: leave it out."
                )
            return str(weights)
        place, about = Path(place), {"source": str(weights), "listing": listing(weights), "read as": stated}
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
            f"and {found.left_out:,} in no split; weight set written to {place}"
        )
        return str(place)

    def _read(self, weights: str | Path) -> PublishedSet:
        options = argparse.Namespace(**asdict(self))
        try:
            size = size_argument(self.size) if self.size else None
            convention = stated_convention(options, size)
            self._check(weights, convention, size)
            return published_set(weights, convention, size=size, splits=self.splits or None, progress=True)
        except argparse.ArgumentTypeError as error:
            raise WeightEditError(f"--size {error}.") from None
        except WeightEditError as error:
            raise type(error)(in_own_words(str(error), options)) from error

    def _check(self, weights: str | Path, convention: Convention | None, size: tuple[int, int] | None) -> None:
        few = load_inrs(inr_paths(weights)[:_CHECKED], convention, size=size)
        check = check_reading(few)
        if check.ok is False:
            raise WeightEditError(
                f"got INRs in {weights} that render as no pictures: {check.figure} (an option of weightedit check, for "
                "one of the files)."
            )
