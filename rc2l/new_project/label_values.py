"""What label files hold: ids or colours, how many, and what the classes are called."""

import csv
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rc2l.data.errors import DatasetError
from rc2l.structures.label_map import IGNORE

#: Files that are read to see what labels hold; of more, evenly many are left out.
_SAMPLE = 200
#: More values than classes that anyone has: the files are photographs, not labels.
_MOST_CLASSES = 254
_MOST_COLORS = 64
_ID_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
#: Files of class names that tools leave beside labels; the ones with colours come first.
_COLOR_LISTS = ("class_dict.csv", "classes.csv", "labelmap.txt", "label_colors.txt", "_classes.csv")
_NAME_LISTS = ("classes.txt", "class_names.txt", "labels.txt", "obj.names", "names.txt", "categories.txt")

Color = tuple[int, int, int]


@dataclass
class Labels:
    """How label files are to be read: keys of a dataset's description."""

    classes: list[str]
    label_map: dict[int, str] | None = None
    color_map: dict[str, list[Color]] | None = None
    #: What a person should know or look at, one line each.
    notes: list[str] = field(default_factory=list)


def sample(paths: list[Path], most: int = _SAMPLE) -> list[Path]:
    """Evenly spread ones of ``paths``, at most ``most``."""
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)]


def looks_like_labels(path: Path) -> bool:
    """Whether an image holds few values in large flat areas, as label maps do and photographs don't."""
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                return False
            if image.mode == "P":
                return True
            image.thumbnail((512, 512), Image.Resampling.NEAREST)
            pixels = np.asarray(image if image.mode in _ID_MODES else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return False
    if pixels.ndim == 2:
        return len(np.unique(pixels)) <= _MOST_COLORS
    return len(np.unique(_codes(pixels))) <= _MOST_COLORS


def read_labels(paths: list[Path], folders: list[Path]) -> Labels:
    """Classes, and the map of ids or colours, from the files themselves and from lists of names beside them.

    Args:
        paths: label files, one or more.
        folders: where a list of class names may lie.

    Raises:
        DatasetError: a file cannot be read, or the files are no labels.
    """
    ids: Counter[int] = Counter()
    colors: Counter[Color] = Counter()
    for path in sample(paths):
        try:
            with Image.open(path) as image:
                as_ids = image.mode in _ID_MODES
                pixels = np.asarray(image if as_ids else image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(f"{path}: cannot read this label ({error}); restore the file or remove it") from error
        if as_ids:
            values, counts = np.unique(pixels.astype(np.int64), return_counts=True)
            ids.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        else:
            codes, counts = np.unique(_codes(pixels), return_counts=True)
            colors.update({_color(code): n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)})
        if len(ids) > _MOST_CLASSES + 2 or len(colors) > 4 * _MOST_COLORS:
            raise DatasetError(
                f"{path.parent}: these files hold {max(len(ids), len(colors))} values and more, as photographs do; "
                "labels have one id or colour a class: save them as PNG, without smoothing"
            )
    if ids and colors:
        raise DatasetError(
            f"{paths[0].parent}: some labels hold ids and others colours, such as {_color_text(next(iter(colors)))}; "
            "save all of them the same way"
        )
    return _from_ids(ids, folders) if ids else _from_colors(colors, folders)


def _from_ids(ids: Counter[int], folders: list[Path]) -> Labels:
    names, source = read_names(folders)
    present = sorted(ids)
    if set(present) <= {0, IGNORE} and len(present) > 1:
        classes = names if len(names) == 2 else ["background", "foreground"]
        return Labels(
            classes,
            label_map={0: classes[0], IGNORE: classes[1]},
            notes=["labels hold 0 and 255: 255 is taken for the object, not for ignored pixels"],
        )
    classes = [value for value in present if value != IGNORE]
    if names:
        if not classes or classes[-1] < len(names):
            return Labels(names, notes=[f"class names are from {source}"])
        if len(names) == len(classes):
            return Labels(
                names,
                label_map={value: name for value, name in zip(classes, names, strict=True)} | {IGNORE: "ignore"},
                notes=[f"class names are from {source}, for the ids {_short(classes)} in this order: is that so?"],
            )
        raise DatasetError(
            f"{source} has {len(names)} names, but labels hold the ids {_short(classes)}; correct the list, one name "
            "for each id from 0 on"
        )
    if len(classes) < 2 and IGNORE not in present:
        raise DatasetError(f"all labels hold only {classes[0]}; there is nothing to learn from one class")
    generic = [f"class_{value}" if value else "background" for value in classes]
    note = "there is no list of class names (classes.txt, one a line): correct 'classes' in the description"
    if classes == list(range(len(classes))):
        return Labels(generic, notes=[note])
    missing = f"the ids are {_short(classes)}: label_map says which is what"
    return Labels(
        generic, label_map=dict(zip(classes, generic, strict=True)) | {IGNORE: "ignore"}, notes=[note, missing]
    )


def _from_colors(colors: Counter[Color], folders: list[Path]) -> Labels:
    named, source = read_color_names(folders)
    if named:
        known = {tuple(color) for each in named.values() for color in each}
        unknown = [color for color in colors if color not in known]
        if unknown:
            raise DatasetError(
                f"{source} has no class for the colour {_color_text(unknown[0])} of the labels ({len(unknown)} colours "
                "have none); add it, or save the labels without smoothing"
            )
        return Labels(list(named), color_map=named, notes=[f"classes and colours are from {source}"])
    if len(colors) > _MOST_COLORS:
        raise DatasetError(
            f"labels hold {len(colors)} colours and no list says which is what; add class_dict.csv (name,r,g,b a "
            "line), or save the labels without smoothing"
        )
    order = sorted(colors, key=lambda color: (color != (0, 0, 0), -colors[color]))
    if set(order) == {(0, 0, 0), (255, 255, 255)}:
        names = ["background", "foreground"]
    else:
        names = ["background" if color == (0, 0, 0) else "color_{:02x}{:02x}{:02x}".format(*color) for color in order]
    return Labels(
        names,
        color_map={name: [color] for name, color in zip(names, order, strict=True)},
        notes=["labels are colours without a list of names (class_dict.csv): correct the names in the description"],
    )


def read_names(folders: list[Path]) -> tuple[list[str], Path | None]:
    """Class names of the first list of names in ``folders``; ([], None) where there is none."""
    for path in (folder / name for folder in folders for name in _NAME_LISTS):
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            names = [line.strip() for line in lines if line.strip() and line.strip() != "__ignore__"]
            return ["background" if name == "_background_" else name for name in names], path
    named, path = read_color_names(folders)
    return list(named), path


def read_color_names(folders: list[Path]) -> tuple[dict[str, list[Color]], Path | None]:
    """Class name -> colours, from the tables that labelling tools export (``name,r,g,b`` or ``name:r,g,b::``)."""
    for path in (folder / name for folder in folders for name in _COLOR_LISTS):
        if not path.is_file():
            continue
        named: dict[str, list[Color]] = {}
        text = path.read_text(encoding="utf-8-sig")
        for row in csv.reader(re.sub(r"[:;\t]", ",", text).splitlines()):
            cells = [cell.strip() for cell in row if cell.strip()]
            numbers = [int(cell) for cell in cells if cell.isdecimal()]
            words = [cell for cell in cells if not cell.isdecimal() and not cell.startswith("#")]
            if len(numbers) >= 3 and words and max(numbers[:3]) <= 255:
                named.setdefault(words[0], []).append(tuple(numbers[:3]))
        if named:
            return named, path
    return {}, None


def _codes(rgb: np.ndarray) -> np.ndarray:
    channels = rgb.astype(np.int32)
    return (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]


def _color(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def _color_text(color: Color) -> str:
    return "({}, {}, {})".format(*color)


def _short(values: list[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
