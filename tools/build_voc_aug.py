"""Build the labels and the list of VOC Aug (10582 images) from SBD and PASCAL VOC 2012.

python tools/build_voc_aug.py --sbd /path/to/benchmark_RELEASE/dataset
"""

import argparse
from pathlib import Path

from rc2l.data.datasets.location import datasets_root
from rc2l.data.datasets.sbd import NUM_AUGMENTED, build_voc_aug
from rc2l.engine.entry_point import entry_point


@entry_point
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbd", type=Path, required=True, help="the folder 'dataset' of SBD, which holds cls/*.mat")
    parser.add_argument(
        "--voc",
        type=Path,
        default=datasets_root() / "VOCdevkit" / "VOC2012",
        help="the folder VOC2012; default: VOCdevkit/VOC2012 below DETECTRON2_DATASETS, else below datasets",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace labels and a list that exist")
    args = parser.parse_args(arguments)
    count = build_voc_aug(args.sbd, args.voc, args.overwrite)
    expected = "" if count == NUM_AUGMENTED else f" (the complete datasets give {NUM_AUGMENTED})"
    print(f"{args.voc / 'SegmentationClassAug'}: {count} labels{expected}")


if __name__ == "__main__":
    main()
