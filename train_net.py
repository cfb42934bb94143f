#!/usr/bin/env python3
"""Train or evaluate RC²L and its baselines.

    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --num-gpus 4
    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --num-gpus 4 --resume
    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file configs/shapes/rc2l.yaml

Any config key can follow as ``KEY VALUE`` pairs, after all the options.
"""

import argparse

from rc2l.engine.entry_point import entry_point
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser, evaluate_only, setup, train


def main(args: argparse.Namespace) -> dict[str, float]:
    cfg = setup(args)
    if args.eval_only:
        return evaluate_only(cfg, args.resume)
    return train(cfg, args.resume, replace=args.fast_dev_run)


@entry_point
def run() -> None:
    launch(main, argument_parser(__doc__).parse_args())


if __name__ == "__main__":
    run()
