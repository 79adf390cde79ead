"""The exceptions of the public door.

Every message says, in this order, what it got, what it expected, and what to do. All but one are ValueErrors, so that
code which catches ValueError keeps working; wrong wiring of channel types is a TypeError. What cannot happen is an
assert inside the library, not an exception from here.
"""

_LINE = 1000


class WeightEditError(ValueError):
    """Base of the errors raised for input that weightedit cannot treat.

    Args:
        message: kept as one line; of one that is longer than 1,000 characters, the beginning and the end.
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LINE else f"{line[: 2 * _LINE // 3]} ... {line[-_LINE // 4 :]}")


class SpecError(WeightEditError):
    """A network whose structure, and hence symmetry, cannot be read; the message names the submodule."""


class ParamsError(WeightEditError):
    """Parameters that do not fit their spec: wrong names, shapes, or values that are not finite."""


class FileFormatError(WeightEditError):
    """A file that is missing, truncated, forged, or of a format that is not read here."""


class TypeMismatchError(TypeError):
    """Channel types that do not fit where two parts of a metanetwork are joined."""


class NonFiniteError(WeightEditError):
    """A training run whose gradients or validation stay infinite or NaN; the message names the parameter."""


def check_seed(value: object) -> None:
    """Raise WeightEditError unless `value`, of the option `seed`, is an int that torch takes as one, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise WeightEditError(f"got seed={value!r}; expected a whole number of at most 18 digits: take any, such as 0.")


def check_whole(name: str, value: object, least: int) -> None:
    """Raise WeightEditError unless `value`, of the option called `name`, is an int of at least `least`, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WeightEditError(f"got {name}={value!r}; expected a whole number of at least {least}: correct it.")
