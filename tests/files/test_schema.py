"""Descriptions of what files hold: values that fit come out as described, every misfit is named at its place."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from weightedit.errors import FileFormatError, SpecError
from weightedit.files.schema import COMPLETE, LATER, Within, conform, conform_fields


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0
    way: Literal["up", "down"] = "up"

    def __post_init__(self) -> None:
        if self.x == 13:
            raise SpecError(f"x {self.x}; expected luck.")


class Whole(TypedDict):
    name: str
    point: Point
    stated: NotRequired[Annotated[Point, COMPLETE]]
    sizes: Annotated[list[Annotated[int, Within(1, 9)]], Within(1, 3)]
    pairs: dict[Literal["a", "b"], tuple[int, bool] | None]
    facts: NotRequired[dict[str, Any]]


FITS = {"name": "n", "point": {"x": 1}, "sizes": [1, 9], "pairs": {"a": [1, True], "b": None}, "facts": {"any": [{}]}}


@dataclass(frozen=True)
class Grown:
    x: int = 0
    since: str = field(default="ever", metadata=LATER)


def test_a_complete_description_may_lack_what_came_later():
    complete = Annotated[Grown, COMPLETE]
    assert conform(complete, {"x": 1}, "file") == Grown(1)
    assert conform(complete, {"x": 1, "since": "now"}, "file") == Grown(1, "now")
    with pytest.raises(FileFormatError, match="file lacks x"):
        conform(complete, {"since": "now"}, "file")


def test_values_come_out_as_they_are_described():
    held: Whole = conform(Whole, FITS, "file")
    assert held["point"] == Point(1) and held["pairs"] == {"a": (1, True), "b": None}
    assert held["sizes"] == [1, 9] and held["facts"] == {"any": [{}]}
    assert type(conform(float, 3, "file")) is float
    assert conform(Whole, held, "file") == held  # once described, it stays so
    assert conform_fields(Point, {"x": 1, "y": 2}, {"way"}, SpecError) == Point(1, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 5}, "name is 5; expected a string"),
        ({"name": "y" * 20_000}, "name is 'y.*y'; expected a string of length 0 to 16,384, not 20000"),
        ({"point": 5}, "point is 5; expected an object"),
        ({"point": {1: 2}}, "point is .*; expected an object"),
        ({"point": {"x": True}}, "point.x is True; expected a whole number from -1,048,576 to 1,048,576"),
        ({"point": {"x": 2**20 + 1}}, "point.x is 1048577; expected a whole number"),
        ({"point": {"x": 10**5000}}, "point.x is <a whole number of 16610 bits>; expected"),
        ({"point": {"x": 1.0}}, "point.x is 1.0; expected a whole number"),
        ({"point": {"x": 1, "y": float("inf")}}, "point.y is inf; expected a finite number below 1e[+]300"),
        ({"point": {"x": 1, "y": 10**400}}, "point.y is <a whole number of 1329 bits>; expected a finite number"),
        ({"point": {"x": 1, "way": "left"}}, "point.way is 'left'; expected 'up' or 'down'"),
        ({"point": {"x": 1, "way": ["up"]}}, r"point.way is \['up'\]; expected 'up' or 'down'"),
        ({"point": {"y": 1}}, "point lacks x; expected the keys way, x, y"),
        ({"point": {"x": 1, "a b": 1}}, "point has the unknown key 'a b'; expected the keys"),
        ({"point": {"x": 13}}, "point does not hold together: x 13; expected luck: correct it"),
        ({"stated": {"x": 1}}, "stated lacks way, y"),
        ({"sizes": []}, "sizes is .*; expected a list of length 1 to 3, not 0"),
        ({"sizes": [10]}, r"sizes\[0\] is 10; expected a whole number from 1 to 9"),
        ({"sizes": None}, "sizes is None; expected a list"),
        ({"pairs": {"c": None}}, "pairs key is 'c'; expected 'a' or 'b'"),
        ({"pairs": {"a": [1]}}, r"pairs.a is \[1\]; expected a list of length 2 to 2, not 1"),
        ({"pairs": {"a": [1, 0]}}, r"pairs.a\[1\] is 0; expected true or false"),
        (
            {"facts": dict.fromkeys(map(str, range(20_000)))},
            "facts is .*; expected an object of at most 16,384",
        ),
    ],
)
def test_misfits_are_named_at_their_place(change, message):
    with pytest.raises(FileFormatError, match=f"^a card: {message}"):
        conform(Whole, {**FITS, **change}, "a card")


def test_the_whole_and_its_error_are_the_callers():
    for value, message in (([], r"a card is \[\]; expected an object"), ({}, "a card lacks name, pairs, point, sizes")):
        with pytest.raises(SpecError, match=f"^{message}.*: correct it, or write it again.$"):
            conform(Whole, value, "a card", SpecError)
    with pytest.raises(FileFormatError, match="is 0; expected null"):
        conform(type(None), 0, "a card")
    for value in ({"x": 1}, {"x": 1, "y": 1, "z": 1}, [1]):
        with pytest.raises(SpecError, match=r"entries \[.*; expected \['way', 'x', 'y'\]"):
            conform_fields(Point, value, {"way"}, SpecError)  # type: ignore[arg-type]
