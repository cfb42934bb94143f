"""Class names, colours and maps of ids or colours, as users write them in the description of a dataset."""

import re
from collections.abc import Mapping
from pathlib import Path

from rc2l.data.datasets.voc import palette
from rc2l.data.errors import DatasetError
from rc2l.structures.label_map import IGNORE

#: 255 is ignored and 254 marks bad ids while reading.
_MAX_CLASSES = 254
#: How labelme names what it ignores, and class 0.
_LABELME_IGNORE = "__ignore__"
_LABELME_BACKGROUND = "_background_"

Color = tuple[int, int, int]


def read_classes(value: object, where: str, root: Path) -> tuple[str, ...]:
    """Class names: a list, or the path (below ``root``) of a text file with one a line.

    In a file, labelme's first line ``__ignore__`` is left out and ``_background_`` becomes "background".

    Raises:
        DatasetError: no names, too many, one twice or not text, or the file cannot be read.
    """
    source = "'classes'"
    if isinstance(value, (str, Path)):
        path = root / Path(value).expanduser()
        try:
            value = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise DatasetError(
                f"{where}: 'classes' is {path}, which cannot be read ({reason}); give a list of names or a text file "
                "with one name a line"
            ) from error
        value = value[1:] if value[:1] == [_LABELME_IGNORE] else value
        value = ["background" if name == _LABELME_BACKGROUND else name for name in value]
        source = str(path)
    return check_classes(value, where, source)


def check_classes(value: object, where: str, source: str) -> tuple[str, ...]:
    """Class names from anywhere, checked; ``source`` says in errors where they are from.

    Raises:
        DatasetError: no list, too few or many, one twice, no text, or not printable.
    """
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= _MAX_CLASSES:
        amount = f"has {len(value)} names" if isinstance(value, (list, tuple)) else f"is {value!r}"
        raise DatasetError(f"{where}: {source} {amount}; give 1 to {_MAX_CLASSES} class names")
    for name in value:
        if not isinstance(name, str) or not name:
            raise DatasetError(f"{where}: {source} has {name!r}, which is not text; put names into quotes")
        if not name.isprintable():
            raise DatasetError(
                f"{where}: {source} has {name!r}, which holds a line break or control character; remove it"
            )
        if value.count(name) > 1:
            raise DatasetError(f"{where}: {source} has '{name}' twice; every class needs a name of its own")
    return tuple(value)


def read_colors(value: object, classes: tuple[str, ...], where: str) -> tuple[Color, ...]:
    """RGB colour of each class: those of ``value`` (a list, or a mapping by name), the VOC palette without it.

    Raises:
        DatasetError: a class without a colour, a name that is no class, or no colour.
    """
    if value is None:
        return tuple(palette(len(classes)))
    if isinstance(value, Mapping):
        for name in value:
            _class_id(name, classes, f"{where}: 'colors'")
        missing = [name for name in classes if name not in value]
        if missing:
            raise DatasetError(f"{where}: 'colors' has no colour for class '{missing[0]}'; add it")
        value = [value[name] for name in classes]
    if not isinstance(value, (list, tuple)) or len(value) != len(classes):
        amount = f"{len(value)} colours" if isinstance(value, (list, tuple)) else repr(value)
        raise DatasetError(
            f"{where}: 'colors' is {amount} for {len(classes)} classes; give one [R, G, B] for each class"
        )
    return tuple(_color(color, f"{where}: 'colors'") for color in value)


def read_label_map(value: object, classes: tuple[str, ...], where: str) -> dict[int, int] | None:
    """Raw id -> train id; the right side may be a class name, an id, 255 or "ignore".

    Raises:
        DatasetError: not a mapping, a raw id that is no number of -1..65535, or no such class.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise DatasetError(f"{where}: 'label_map' is {value!r}; it must be a mapping such as {{0: 0, 255: 1}}")
    for raw_id in value:
        if isinstance(raw_id, bool) or not isinstance(raw_id, int) or not -1 <= raw_id < 1 << 16:
            raise DatasetError(
                f"{where}: 'label_map' has the id {raw_id!r}; ids in label files are numbers of -1..65535"
            )
    return {raw_id: _class_id(target, classes, f"{where}: 'label_map'") for raw_id, target in value.items()}


def read_color_map(value: object, classes: tuple[str, ...], where: str) -> dict[Color, int] | None:
    """(R, G, B) -> train id, from class name (or "ignore") -> a colour or a list of colours.

    Raises:
        DatasetError: not a mapping, no such class, no colour, or a colour of two classes.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise DatasetError(
            f"{where}: 'color_map' is {value!r}; it must be a mapping from class names to colours, such as "
            "{road: [128, 64, 128], ignore: [0, 0, 0]}"
        )
    color_map: dict[Color, int] = {}
    for name, colors in value.items():
        train_id = _class_id(name, classes, f"{where}: 'color_map'")
        several = isinstance(colors, (list, tuple)) and any(isinstance(item, (list, tuple, str)) for item in colors)
        for color in colors if several else [colors]:
            rgb = _color(color, f"{where}: 'color_map', class '{name}'")
            if color_map.setdefault(rgb, train_id) != train_id:
                raise DatasetError(f"{where}: 'color_map' gives the colour {list(rgb)} to two classes; give it to one")
    return color_map


def _class_id(target: object, classes: tuple[str, ...], what: str) -> int:
    if target == "ignore" and "ignore" not in classes:
        return IGNORE
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    if isinstance(target, int) and not isinstance(target, bool) and (0 <= target < len(classes) or target == IGNORE):
        return target
    raise DatasetError(
        f"{what} names {target!r}, which is no class; use a class name, 0..{len(classes) - 1}, or ignore ({IGNORE})"
    )


def _color(value: object, what: str) -> Color:
    """[R, G, B] or "#rrggbb" -> a tuple of three numbers of 0..255."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or any(isinstance(part, bool) or not isinstance(part, int) or not 0 <= part <= 255 for part in value)
    ):
        raise DatasetError(f"{what} has {value!r}, which is no colour; use [R, G, B], each 0..255, or '#rrggbb'")
    return tuple(value)
