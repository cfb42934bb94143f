#!/usr/bin/env python3
"""Train or evaluate RC²L and its baselines.

    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --num-gpus 4
    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --num-gpus 4 --resume
    python train_net.py --config-file configs/voc/rc2l_r101_1-16.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc-per-node 2 train_net.py --config-file configs/shapes/rc2l.yaml

Any config key can follow as ``KEY VALUE`` pairs, after all the options.
"""

from rc2l.engine.command import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run(__doc__)
