"""Write which images are labelled as text files, or check such files.

    python tools/make_splits.py splits/voc/92 --dataset voc_2012_sem_seg_train --num-labeled 92
    python tools/make_splits.py splits/city/20 --dataset cityscapes_sem_seg_train --num-labeled 20 \\
        --sampling few_labels --min-classes 10
    python tools/make_splits.py splits/voc/1-16 --config-file configs/voc/rc2l_r101_1-16.yaml
    python tools/make_splits.py splits/voc/92 --check
    python tools/make_splits.py downloaded/92 --check --dataset voc_2012_sem_seg_train

The folder gets labeled.txt and unlabeled.txt, one image id a line, and split.json with source, seed, counts and hash.
Train with it by DATASETS.SPLIT.LABELED_LIST <folder>. --check reads a folder of ours or of a published split as
training would, and compares counts and hash with its split.json, if there is one.
"""

import rc2l  # noqa: F401  first of all: makes detectron2 importable

# isort: split
import argparse
import json
from pathlib import Path

from detectron2.config import CfgNode

from rc2l.data.datasets import dataset_family
from rc2l.data.datasets.location import datasets_root
from rc2l.data.errors import DatasetError
from rc2l.data.split_lists import LABELED_FILE, SPLIT_FILE, write_lists
from rc2l.data.splits import Split, build_split
from rc2l.engine.arguments import add_import_argument
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point
from rc2l.structures.needs import Needs

#: Options that stand for one config key each.
_KEYS = {
    "dataset": "DATASETS.TRAIN",
    "unlabeled": "DATASETS.UNLABELED",
    "fraction": "DATASETS.SPLIT.FRACTION",
    "num_labeled": "DATASETS.SPLIT.NUM_LABELED",
    "sampling": "DATASETS.SPLIT.SAMPLING",
    "min_classes": "DATASETS.SPLIT.MIN_CLASSES",
    "seed": "DATASETS.SPLIT.SEED",
}


def split_config(args: argparse.Namespace) -> CfgNode:
    """The config of the config file with the options on top."""
    given = {key: getattr(args, name) for name, key in _KEYS.items() if getattr(args, name) is not None}
    overrides = [word for key, value in given.items() for word in (key, value)]
    return load_config(args.config_file, [*args.opts, *overrides])


def facts_of(cfg: CfgNode, split: Split) -> dict:
    """What split.json says."""
    options = cfg.DATASETS.SPLIT
    facts = {
        "source": split.source,
        "datasets": list(cfg.DATASETS.TRAIN),
        "unlabeled_datasets": list(cfg.DATASETS.UNLABELED),
        "sampling": options.SAMPLING,
        "seed": split.seed,
        "labeled": len(split.labeled),
        "unlabeled": len(split.unlabeled),
        "hash": split.hash,
    }
    return facts | ({"min_classes": options.MIN_CLASSES} if options.SAMPLING == "few_labels" else {})


def names_of(split: Split) -> tuple[list[str], list[str]]:
    """One line for each labelled and each unlabelled image: its id, or its path where two datasets share the id."""
    ids: dict[str, set[str]] = {}
    for record in [*split.labeled, *split.unlabeled]:
        ids.setdefault(str(record["image_id"]), set()).add(dataset_family(record["dataset"]))
    root = datasets_root().absolute()

    def name(record: dict) -> str:
        image_id = str(record["image_id"])
        if len(ids[image_id]) == 1:
            return image_id
        path = Path(record["file_name"]).absolute()
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()

    return [name(record) for record in split.labeled], [name(record) for record in split.unlabeled]


def make(args: argparse.Namespace) -> str:
    """Write the folder; returns what was written, in words."""
    cfg = split_config(args)
    options = cfg.DATASETS.SPLIT
    if cfg.DATASETS.PARTIAL_LABELS.ENABLED:
        raise DatasetError("DATASETS.PARTIAL_LABELS labels every image, so there is no split; set ENABLED False")
    if not options.LABELED_LIST and not options.NUM_LABELED and options.FRACTION == "all":
        raise DatasetError("all images would be labelled; give --num-labeled or --fraction, such as --fraction 1/8")
    split = build_split(cfg, Needs())  # a list of all images is a split too
    write_lists(args.folder, *names_of(split), facts_of(cfg, split))
    return f"{args.folder}: {_summary(split)}"


def check(args: argparse.Namespace) -> str:
    """Read the folder as training would; returns what was found, in words.

    Raises:
        DatasetError: a line is wrong, or counts or hash are not those of split.json.
    """
    path = args.folder / SPLIT_FILE
    facts = {}
    if path.exists():
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            args.dataset = args.dataset or repr(tuple(facts["datasets"]))
            args.unlabeled = args.unlabeled or repr(tuple(facts["unlabeled_datasets"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path}: this is no split.json of make_splits.py ({error!r}); remove it") from error
    cfg = split_config(args)
    if not cfg.DATASETS.TRAIN:
        raise DatasetError(f"{args.folder} has no {SPLIT_FILE}; say which images it is about by --dataset")
    cfg.DATASETS.SPLIT.LABELED_LIST = str(args.folder)
    split = build_split(cfg, Needs())  # a list of all images is a split too
    found = {"labeled": len(split.labeled), "unlabeled": len(split.unlabeled), "hash": split.hash}
    for key, value in found.items():
        if facts.get(key, value) != value:
            raise DatasetError(
                f"{args.folder}: {key} is {value}, but {path} says {facts[key]}; the lists or the dataset were changed "
                "since, make the split again"
            )
    return f"{args.folder} is correct: {_summary(split)}"


def _summary(split: Split) -> str:
    return f"{len(split.labeled)} labelled + {len(split.unlabeled)} unlabelled images, hash {split.hash}"


def _names(text: str) -> str:
    return repr(tuple(text.split(",")))


@entry_point
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help=f"folder with {LABELED_FILE}; a new one unless --check")
    parser.add_argument("--check", action="store_true", help="check the folder instead of writing it")
    parser.add_argument("--config-file", default="", help="take DATASETS from this config")
    parser.add_argument("--dataset", type=_names, help="registered dataset, or several with commas between")
    parser.add_argument("--unlabeled", type=_names, help="likewise, datasets of unlabelled images only")
    parser.add_argument("--fraction", help="labelled share, such as 1/8")
    parser.add_argument("--num-labeled", help="number of labelled images")
    parser.add_argument("--sampling", help="random, class_balanced or few_labels")
    parser.add_argument("--min-classes", help="few_labels: classes that a labelled image has at least")
    parser.add_argument("--seed", help="which draw")
    parser.add_argument("opts", nargs="*", help="config KEY VALUE pairs")
    add_import_argument(parser)
    args = parser.parse_intermixed_args(argv)
    print(check(args) if args.check else make(args))


if __name__ == "__main__":
    main()
