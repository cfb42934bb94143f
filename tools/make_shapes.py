"""Make the embedded dataset `shapes` below DETECTRON2_DATASETS."""

import argparse
import os

from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.entry_point import entry_point


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="folder of all datasets; default: DETECTRON2_DATASETS, else datasets",
    )
    parser.add_argument("--size", type=int, default=64, help="height and width of the images in pixels, at least 16")
    parser.add_argument("--seed", type=int, default=0, help="which dataset, 0 or more")
    parser.add_argument("--num-train", type=int, default=512, help="training images")
    parser.add_argument("--num-val", type=int, default=128, help="validation images")
    args = parser.parse_args()
    folder = generate_shapes(args.root, args.num_train, args.num_val, args.size, args.seed, progress=True)
    print(f"{folder}: {args.num_train} training and {args.num_val} validation images of {args.size}x{args.size} pixels")


if __name__ == "__main__":
    main()
