"""Finds one mask for each class and image: told apart by the ends of their names, or by folders."""

import os
import re
from pathlib import Path

from rc2l.new_project.mask_folders import Masks, relative_name

#: Masks an image, on average, from which on they are not taken for label maps.
_SEVERAL = 1.5
_NUMBER = re.compile(r"([-_ .]?)\d+$")


def find_class_masks(root: Path, folders: dict[Path, list[Path]], flat: list[Path]) -> Masks | None:
    """The description of such masks; arguments of :func:`~rc2l.new_project.mask_folders.by_folder`."""
    images = [folder for folder in folders if folder not in flat]
    for parent in dict.fromkeys(folder.parent for folder in flat):
        classes = {folder.name: folders[folder] for folder in flat if folder.parent == parent}
        if parent != root and (found := _a_folder_for_each_class(root, parent, classes, images, folders)):
            return found
    for masks in flat:
        for folder in images:
            if found := _by_the_ends_of_names(root, masks, folder, folders):
                return found
    return None


def _a_folder_for_each_class(
    root: Path, parent: Path, classes: dict[str, list[Path]], images: list[Path], folders: dict[Path, list[Path]]
) -> Masks | None:
    """masks/roof/1.png and masks/tree/1.png of images/1.jpg; folders of subsets have no image in common."""
    stems = [{path.stem for path in paths} for paths in classes.values()]
    together = set.union(*stems)
    if sum(map(len, stems)) == len(together):
        return None
    for folder in images:
        if together <= {path.stem for path in folders[folder]}:
            labels = [path for paths in classes.values() for path in paths]
            content = {
                "images": relative_name(folder, root),
                "labels": relative_name(parent, root),
                "masks": f"{{class}}/{{image}}{labels[0].suffix}",
            }
            return Masks(content, labels, by_class=sorted(classes))
    return None


def _by_the_ends_of_names(root: Path, masks: Path, images: Path, folders: dict[Path, list[Path]]) -> Masks | None:
    """masks/1-tag-roof-0.png and masks/1-tag-tree-0.png of images/1.jpg."""
    stems = {path.stem for path in folders[images]}
    starts = [
        next((path.stem[:end] for end in range(len(path.stem), 0, -1) if path.stem[:end] in stems), None)
        for path in folders[masks]
    ]
    if None in starts or len(starts) < _SEVERAL * len(set(starts)):
        return None
    ends = [path.stem.removeprefix(start) for path, start in zip(folders[masks], starts, strict=True)]
    if any(not end or end[0].isalnum() for end in ends):
        return None
    # What all ends begin with, up to the word in which they differ.
    shared = re.match(r"(.*?)[^\W_]*$", os.path.commonprefix(ends))[1]
    rests = [end.removeprefix(shared) for end in ends]
    numbered = all(_NUMBER.search(rest) and _NUMBER.sub("", rest) for rest in rests)
    classes = {_NUMBER.sub("", rest) if numbered else rest for rest in rests}
    if len(classes) < 2 and not numbered:
        return None
    number = f"{_NUMBER.search(rests[0])[1]}{{n}}" if numbered else ""
    content = {
        "images": relative_name(images, root),
        "labels": relative_name(masks, root),
        "masks": f"{{image}}{shared}{{class}}{number}{folders[masks][0].suffix}",
    }
    return Masks(content, folders[masks], by_class=sorted(classes))
