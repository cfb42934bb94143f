"""Read every file of datasets once and report classes, sizes and everything that is wrong.

    python tools/check_dataset.py voc_2012_sem_seg_train voc_2012_sem_seg_val
    python tools/check_dataset.py my_dataset.yaml                                  all datasets of a dataset YAML file
    python tools/check_dataset.py --config-file configs/custom/rc2l_r50.yaml       all datasets of a config

The exit status is 0 where the data is clean, 1 where there are problems, 2 where nothing could be checked.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from rc2l.data.audit import DatasetReport, audit_dataset, compare_datasets, unmatched_labels
from rc2l.data.datasets import register_dataset_file
from rc2l.data.errors import DatasetError
from rc2l.engine.arguments import add_import_argument, split_overrides
from rc2l.engine.config_file import load_config
from rc2l.engine.entry_point import entry_point

if TYPE_CHECKING:
    from detectron2.config import CfgNode

#: Lines of problems of one dataset that are printed.
_SHOWN = 20


def dataset_names(names: list[str], cfg: "CfgNode | None") -> list[str]:
    """The datasets to check, each once: those of YAML files among ``names``, other names, those of a config.

    Raises:
        ValueError: a file is wrong, or nothing is asked for.
    """
    wanted: list[str] = []
    if cfg is not None:
        wanted += [*cfg.DATASETS.TRAIN, *cfg.DATASETS.UNLABELED, *cfg.DATASETS.TEST]
    for name in names:
        wanted += register_dataset_file(name) if name.endswith((".yaml", ".yml")) else [name]
    if not wanted:
        raise ValueError("nothing to check: name datasets, a dataset YAML file, or a --config-file")
    return list(dict.fromkeys(wanted))


def print_report(report: DatasetReport) -> None:
    print(f"\n{report.text()}")
    for note in report.notes[:_SHOWN]:
        print(f"note: {note}")
    for problem in report.problems[:_SHOWN]:
        print(f"problem: {problem}")
    hidden = len(report.notes[_SHOWN:]), len(report.problems[_SHOWN:])
    if any(hidden):
        print(f"and {hidden[0]} more notes, {hidden[1]} more problems")


@entry_point
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="names of datasets, or dataset YAML files")
    parser.add_argument("--config-file", default="", help="check DATASETS.TRAIN, UNLABELED and TEST of a config")
    parser.add_argument("--workers", type=int, help="threads that read; default: as many as suit the machine")
    parser.add_argument("--opts", nargs="*", default=[], help=argparse.SUPPRESS)
    add_import_argument(parser)
    words, pairs = split_overrides(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)
    args.opts += pairs
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}; use 1 or more")
    cfg = load_config(args.config_file, args.opts) if args.config_file else None
    names = dataset_names(args.datasets, cfg)
    skip_damaged = cfg is not None and cfg.DATASETS.DAMAGED == "skip"

    reports, problems = [], []
    for name in names:
        try:
            reports.append(audit_dataset(name, args.workers, skip_damaged))
            print_report(reports[-1])
        except DatasetError as error:
            problems.append(str(error))
    problems += compare_datasets(reports)
    try:
        problems += unmatched_labels(names)
    except DatasetError as error:
        problems.append(str(error))
    problems = list(dict.fromkeys(problems))
    print()
    for problem in problems:
        print(f"problem: {problem}")
    count = len(problems) + sum(len(report.problems) for report in reports)
    print(f"{count} problems" if count else "clean")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
