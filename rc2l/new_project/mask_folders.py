"""Finds masks among image files: in folders of their own or beside their images, whatever ends their names."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rc2l.data.datasets.folder import IMAGE_SUFFIXES, LABEL_SUFFIXES
from rc2l.new_project.label_values import looks_like_labels, sample

#: Words in the names of folders and files.
_SUBSET_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "tst"),
}
_LABEL_WORDS = ("label", "mask", "annot", "gt", "seg", "target", "truth")
#: Files of a folder that are looked into.
_PROBE = 5
#: Share of the labels that must belong to images.
_ENOUGH = 0.5


@dataclass
class Masks:
    """What was found: keys of a description, and the files behind them."""

    content: dict
    labels: list[Path]
    notes: list[str] = field(default_factory=list)
    #: Names of classes in the names of the masks, where each class has a mask of its own.
    by_class: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Pair:
    """A folder of images and one of their labels; equal where they lie side by side."""

    images: Path
    labels: Path
    image_suffix: str
    label_suffix: str
    #: Only files of this suffix are images, where both have the same names.
    only: str = ""


def subset_of(path: Path) -> str:
    """ "train", "val" or "test" by the words of a relative path, the last ones first; "" where none says it."""
    for part in reversed(path.parts):
        words = "".join(c if c.isalpha() else " " for c in part.lower()).split()
        for subset, names in _SUBSET_WORDS.items():
            if any(word in names for word in words):
                return subset
    return ""


def by_folder(root: Path, files: list[Path]) -> tuple[dict[Path, list[Path]], list[Path]]:
    """The image ``files`` of each folder below ``root``, and the folders that hold labels alone."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    flat = [folder for folder, paths in folders.items() if _holds_labels(paths)]
    # Folders whose name says so come first: drawn pictures have few colours, too.
    return folders, sorted(flat, key=lambda folder: not _has_label_word(folder.relative_to(root)))


def find_masks(root: Path, folders: dict[Path, list[Path]], flat: list[Path]) -> Masks | None:
    """The description of images and label maps; arguments of :func:`by_folder`. None where there are no label maps."""
    pairs: dict[_Pair, list[Path]] = {}
    taken: set[Path] = set()
    for folder in flat:
        candidates = [other for other in folders if other != folder and other not in taken]
        best = max(((_match(folders[c], folders[folder]), c) for c in candidates), default=None, key=lambda m: m[0][0])
        if best and best[0][0] >= _ENOUGH * len(folders[folder]):
            (_, image_suffix, label_suffix), images = best
            taken |= {folder}
            pair = _Pair(*_lift(images, folder, root), image_suffix, label_suffix)
            pairs.setdefault(pair, []).extend(folders[folder])
    for folder, paths in folders.items():
        if folder not in taken and (beside := _beside(folder, paths)):
            pairs[beside[0]] = beside[1]
    return _describe(root, pairs, folders, taken) if pairs else None


def _describe(root: Path, pairs: dict[_Pair, list[Path]], folders: dict[Path, list[Path]], taken: set[Path]) -> Masks:
    labels = [path for paths in pairs.values() for path in paths]
    notes = []
    by_subset: dict[str, _Pair] = {}
    for pair in sorted(pairs, key=lambda pair: -len(pairs[pair])):
        subset = subset_of(pair.images.relative_to(root)) or subset_of(pair.labels.relative_to(root)) or "train"
        if subset in by_subset:
            notes.append(
                f"{relative_name(pair.images, root)} with labels in {relative_name(pair.labels, root)} is left out: "
                f"{relative_name(by_subset[subset].images, root)} is taken for {subset}; describe it by itself"
            )
        elif subset == "test" and len(pairs) > 1:
            notes.append(
                f"{relative_name(pair.images, root)} is left out: score it at the very end, as a dataset of its own"
            )
        else:
            by_subset[subset] = pair
    sources = {subset: _source(pair, root) for subset, pair in by_subset.items()}
    suffixes = {(pair.image_suffix, pair.label_suffix) for pair in by_subset.values()}
    content: dict = {}
    if len(sources) == 1:
        content |= next(iter(sources.values()))
    else:
        content |= {subset: sources[subset] for subset in ("train", "val") if subset in sources}
    image_suffix, label_suffix = max(suffixes, key=len)
    content |= {"image_suffix": image_suffix} if image_suffix else {}
    content |= {"label_suffix": label_suffix} if label_suffix else {}
    used = {pair.images for pair in pairs} | {pair.labels for pair in pairs}
    free = [
        folder
        for folder in folders
        if folder not in taken
        and not any(folder == u or folder.is_relative_to(u) for u in used if u != root)
        and folder not in used
        and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folders[folder])
    ]
    unlabeled = [folder for folder in free if subset_of(folder.relative_to(root)) not in ("val", "test")]
    notes += [
        f"{relative_name(folder, root)} has no labels and is left out by its name; name it in `unlabeled` to use it"
        for folder in free
        if folder not in unlabeled
    ]
    if unlabeled:
        content["unlabeled"] = relative_name(max(unlabeled, key=lambda folder: len(folders[folder])), root)
        notes += [
            f"{relative_name(folder, root)} is left out: `unlabeled` may be a pattern for several folders"
            for folder in unlabeled
            if relative_name(folder, root) != content["unlabeled"]
        ]
    return Masks(content, labels, notes=notes)


def _source(pair: _Pair, root: Path) -> dict:
    images = relative_name(pair.images, root)
    if pair.only:
        images = f"{images}/*{pair.only}" if images != "." else f"*{pair.only}"
    return {"images": images, "labels": relative_name(pair.labels, root)}


def _holds_labels(paths: list[Path]) -> bool:
    usable = [path for path in paths if path.suffix.lower() in LABEL_SUFFIXES]
    return len(usable) == len(paths) and all(looks_like_labels(path) for path in sample(usable, _PROBE))


def _has_label_word(path: Path) -> bool:
    return any(word in path.as_posix().lower() for word in _LABEL_WORDS)


def _match(images: list[Path], labels: list[Path]) -> tuple[int, str, str]:
    """(labels that belong to an image, end of the images' names, end of the labels' names), as good as can be."""
    stems, names = {path.stem for path in images}, {path.name for path in images}
    exact = sum(path.stem in stems for path in labels) or sum(path.stem in names for path in labels)
    best = (exact, "", "")
    for image_suffix, label_suffix in _endings(stems, [path.stem for path in labels]):
        starts = {stem.removesuffix(image_suffix) for stem in stems if stem.endswith(image_suffix)}
        count = sum(
            path.stem.endswith(label_suffix) and path.stem.removesuffix(label_suffix) in starts for path in labels
        )
        best = max(best, (count, image_suffix, label_suffix), key=lambda found: found[0])
    return best


def _endings(images: Iterable[str], labels: list[str]) -> list[tuple[str, str]]:
    """Pairs of endings after the common beginning of some labels and their nearest images, most frequent first."""
    found: Counter[tuple[str, str]] = Counter()
    ordered = sorted(images)
    for label in labels[:20]:
        nearest = max(ordered, key=lambda stem: _common(stem, label), default="")
        length = _common(nearest, label)
        # The beginning ends where a word does, so that digits of numbers are not split.
        while length and length < len(label) and label[length].isalnum() and label[length - 1].isalnum():
            length -= 1
        while length and not label[length - 1].isalnum():
            length -= 1
        if length:
            found[nearest[length:], label[length:]] += 1
    return [endings for endings, _ in found.most_common(5)]


def _common(first: str, second: str) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def _lift(images: Path, labels: Path, root: Path) -> tuple[Path, Path]:
    """Both folders without the subfolders that are the same, which a description searches itself.

    Such as images/train/a and labels/train/a -> images/train and labels/train: the names of subsets stay.
    """
    while (
        images.name == labels.name
        and images.parent != labels.parent
        and not subset_of(Path(images.name))
        and root not in (images.parent, labels.parent)
    ):
        images, labels = images.parent, labels.parent
    return images, labels


def _beside(folder: Path, paths: list[Path]) -> tuple[_Pair, list[Path]] | None:
    """Masks in the folder of their images: a.jpg with a_mask.png, or with a.png."""
    by_suffix: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_suffix[path.suffix.lower()].append(path)
    for suffix, labels in by_suffix.items():
        others = [path for path in paths if path.suffix.lower() != suffix]
        stems = {path.stem for path in others}
        named = [path for path in labels if path.stem in stems]
        if suffix in LABEL_SUFFIXES and named and _holds_labels(named):
            only = Counter(path.suffix for path in others).most_common(1)[0][0]
            return _Pair(folder, folder, "", "", only=only), named
    endings: Counter[str] = Counter()
    stems = {path.stem for path in paths}
    for stem in stems:
        for end in range(len(stem) - 1, 0, -1):
            if stem[:end] in stems and not stem[end].isalnum():
                endings[stem[end:]] += 1
                break
    for ending, count in endings.most_common(3):
        labels = [path for path in paths if path.stem.endswith(ending) and path.suffix.lower() in LABEL_SUFFIXES]
        if 3 * count >= len(paths) - count and labels and _holds_labels(labels):
            return _Pair(folder, folder, "", ending), labels
    return None


def relative_name(path: Path, root: Path) -> str:
    """The path below ``root`` as a description has it."""
    return path.relative_to(root).as_posix()
