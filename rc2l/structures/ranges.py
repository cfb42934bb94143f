"""Which values something may have: a test and the words for it, so that both stand once."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Largest values of keys that count steps, things (images, pixels, entries of a memory) and channels: far beyond all
#: use, so that what is accepted fits the integers of every library.
MOST_STEPS, MOST_THINGS, MOST_CHANNELS = 10**9, 10**8, 2**16


@dataclass(frozen=True)
class Range:
    """The values that a key may have, and the same in words, to follow "it must be"."""

    words: str
    accepts: Callable[[object], bool]

    def check(self, name: str, value: object) -> None:
        """ValueError, in one line, where a value of what is called ``name`` is none of them."""
        if not self.accepts(value):
            raise ValueError(f"{name} is {_short(repr(value))}: it must be {self.words}")


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def number(
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Range:
    """A finite number within bounds; ``above`` and ``below`` leave the bound itself out."""

    def accepts(value: object) -> bool:
        return (
            _is_number(value)
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        )

    return Range(f"a number{_bounds(at_least, above, at_most, below)}", accepts)


def integer(at_least: int | None = None, at_most: int | None = None, multiple_of: int = 1) -> Range:
    """A whole number within bounds."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and (at_least is None or value >= at_least)
            and (at_most is None or value <= at_most)
            and value % multiple_of == 0
        )

    kind = "a whole number" if multiple_of == 1 else f"a multiple of {multiple_of}"
    return Range(kind + _bounds(at_least, None, at_most, None), accepts)


def flag() -> Range:
    """True or False."""
    return Range("True or False", lambda value: isinstance(value, bool))


def one_of(*choices: object) -> Range:
    """One of a few values, of the same type (True is not 1)."""
    words = choices[0] if len(choices) == 1 else f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
    return Range(str(words), lambda value: any(type(value) is type(each) and value == each for each in choices))


def only(value: object, why: str) -> Range:
    """A single value; ``why`` says what another one would be ignored for."""
    return Range(f"{value}, as {why}", lambda given: type(given) is type(value) and given == value)


def a_mapping() -> Range:
    """A mapping, whatever it holds: something else checks it."""
    return Range("a mapping", lambda value: isinstance(value, dict))


def text(empty: bool = True) -> Range:
    """A string of one line."""

    def accepts(value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and (empty or bool(value.strip()))

    return Range("text" if empty else "text that is not empty", accepts)


def several(each: Range, at_least: int = 0, at_most: int | None = None) -> Range:
    """A list of any length within bounds."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) >= at_least
            and (at_most is None or len(value) <= at_most)
            and all(each.accepts(item) for item in value)
        )

    length = f" of {at_least} or more" if at_least else ""
    if at_most is not None:
        length = f" of {at_least}" if at_least == at_most else f" of {at_least} to {at_most}"
    return Range(f"a list{length}, each {each.words}", accepts)


def exactly(*ranges: Range) -> Range:
    """A list with one value for each of the ranges."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(ranges)
            and all(each.accepts(item) for each, item in zip(ranges, value, strict=True))
        )

    if all(each.words == ranges[0].words for each in ranges):
        return Range(f"a list of {len(ranges)}, each {ranges[0].words}", accepts)
    return Range(f"a list of {len(ranges)}: {', '.join(each.words for each in ranges)}", accepts)


def smallest_largest(each: Range) -> Range:
    """Two numbers, the second not below the first."""
    pair = exactly(each, each)
    return Range(f"[smallest, largest], each {each.words}", lambda value: pair.accepts(value) and value[0] <= value[1])


def either(*ranges: Range) -> Range:
    """Whatever one of several ranges accepts."""
    return Range(", or ".join(each.words for each in ranges), lambda value: any(each.accepts(value) for each in ranges))


def check_fields(options: object, ranges: Mapping[str, Range]) -> None:
    """Check attributes of an object by name; for the ``__post_init__`` of options. Raises ValueError."""
    for name, allowed in ranges.items():
        allowed.check(f"{type(options).__name__}.{name}", getattr(options, name))


def _is_number(value: object) -> bool:
    # Python's whole numbers have no end, and floats end before.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bounds(at_least: float | None, above: float | None, at_most: float | None, below: float | None) -> str:
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    if low is None and high is None:
        return ""
    if high is None:
        return f", {low} or more" if above is None else f" above {low}"
    if low is None:
        return f", at most {high}" if below is None else f" below {high}"
    return f" in {'[' if above is None else '('}{low}, {high}{']' if below is None else ')'}"


#: From none to all.
SHARE = number(at_least=0, at_most=1)
