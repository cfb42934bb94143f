#!/usr/bin/env python3
"""Begin a training with every wrong-looking value that a config key accepts: each trains, or is one line.

    python tests/extremes.py

The values are those of test_key_ranges.py, and the ends of each range. Each of them goes into a tiny config that reads
its key, and is trained for one step and scored; the ends in processes of bounded time and memory. Prints each, and
counts; exits with 1 if any ended in a traceback. Not a part of `make test`, which checks the ranges.
"""

import argparse
import contextlib
import copy
import io
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from detectron2.config import CfgNode

from rc2l.config import get_rc2l_cfg
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.config_file import check_config, load_config
from rc2l.engine.entry_point import EXIT_UNEXPECTED, EXIT_USER_ERROR, entry_point
from rc2l.engine.launch import resolve_device
from rc2l.engine.run import seed_all_rng, train
from rc2l.engine.run_log import start_logging
from rc2l.engine.training_check import check_training
from rc2l.ranges import RANGES, flatten
from tests.shared_data import REPO
from tests.test_dgcl_training import TINY
from tests.test_key_ranges import attempts, put

SHORT = [
    *TINY,
    *"SOLVER.MAX_ITER 1 SEMI.BURN_IN 0 TEST.MAX_IMAGES 1 INPUT.CROP.SIZE [32,32] DATALOADER.NUM_WORKERS 0".split(),
]
PIXELS = "RECO.ENABLED True DGCL.ENABLED True".split()
#: Start of a key -> config of shapes that reads it, and overrides; the first that fits counts.
READERS = {
    "S4GAN": ("s4gan_deeplab", []),
    "UNIMATCH": ("cutmix_deeplab", ["SEMI.METHOD", "unimatch"]),
    "SELF_TRAINING": ("classmix_deeplab", PIXELS),
    "MODEL.SEM_SEG_HEAD.ASPP": ("cutmix_deeplab", []),
    "MODEL.SEM_SEG_HEAD.PROJECT": ("cutmix_deeplab", []),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE": (
        "rc2l_mask2former",
        ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"],
    ),
    "MODEL.TIMM": ("rc2l", "MODEL.BACKBONE.NAME build_timm_backbone MODEL.TIMM.NAME test_resnet".split()),
    "MODEL.SWIN": (
        "rc2l",
        ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1,1,1,1]"],
    ),
    "MODEL.MASK_FORMER": ("rc2l_mask2former", []),
    "": ("rc2l", PIXELS),
}
#: Seconds of a core and bytes that a training with an end of a range may take; the tiny one takes 1 s.
MOST_SECONDS, MOST_BYTES = 8, 8 * 2**30
SAVE = RunCheckpointer.save
ENDS = {
    0: "trains",
    EXIT_USER_ERROR: "one line",
    EXIT_UNEXPECTED: "TRACEBACK",
    -signal.SIGXCPU: "takes too long for this check",
    -signal.SIGKILL: "takes too long for this check",
}


def ends_of(words: str, default: object) -> dict[str, object]:
    """The ends of the range of a number, of the kind of its default."""
    kind = type(default)
    if kind not in (int, float):
        return {}
    found = {}
    for number in map(float, re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", words)):
        if kind is int and number.is_integer():
            found[f"end {number:g}"] = int(number)
        elif kind is float:
            found |= {f"end {number:g}": number, f"above {number:g}": math.nextafter(number, math.inf)}
    return found


def accepted() -> Iterator[tuple[str, str, object]]:
    """(key, kind of value, value) of all values but the default that the ranges let through."""
    cfg = get_rc2l_cfg()
    for key, default in flatten(get_rc2l_cfg()):
        ends = ends_of(RANGES[key].words, default) if key in RANGES else {}
        tried = [(type(default), default)]
        for kind, value in (attempts(key, default) | ends).items():
            if key in RANGES and RANGES[key].accepts(value) and (type(value), value) not in tried:
                tried.append((type(value), value))
                put(cfg, key, value)
                with contextlib.suppress(ValueError):
                    check_config(cfg)
                    yield key, kind, value
                put(cfg, key, default)


def config_of(key: str, configs: dict[str, CfgNode]) -> CfgNode:
    start = next(start for start in READERS if key.startswith(start))
    if start not in configs:
        name, overrides = READERS[start]
        configs[start] = load_config(str(REPO / f"configs/shapes/{name}.yaml"), [*TINY, *SHORT, *overrides])
    return copy.deepcopy(configs[start])


@entry_point
def begin(cfg: CfgNode, key: str, value: object) -> None:
    default = dict(flatten(cfg))[key]
    put(cfg, key, float(value) if isinstance(default, float) and isinstance(value, int) else value)  # as files are read
    resolve_device(cfg, num_gpus=0)
    check_config(cfg)
    check_training(cfg)
    start_logging()
    seed_all_rng(0)
    # Writing is what takes longest, and the same for all keys but those of the solver.
    RunCheckpointer.save = SAVE if key.startswith("SOLVER") else lambda *_, **__: None
    train(cfg, resume=False)


def attempt(cfg: CfgNode, key: str, value: object, folder: Path) -> tuple[int, str]:
    """(exit status, what it said on standard error) of a training in this process."""
    cfg.OUTPUT_DIR, said, status = str(folder), io.StringIO(), 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            begin(cfg, key, value)
        except SystemExit as end:
            status = end.code
    return status, said.getvalue()


def attempt_apart(cfg: CfgNode, key: str, value: object, folder: Path) -> tuple[int, str]:
    """The same in a process of bounded time and memory."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        status = EXIT_UNEXPECTED
        try:
            status, said = attempt(cfg, key, value, folder)
            os.write(sending, said.encode()[-4000:])
        finally:
            os._exit(status)
    os.close(sending)
    with open(receiving, errors="replace") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="START", help="keys that start so")
    parser.add_argument("--first", default="", metavar="KEY", help="begin with this key")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    configs: dict[str, CfgNode] = {}
    begun = not args.first
    with tempfile.TemporaryDirectory() as name:
        generate_shapes(Path(name), num_train=16, num_val=4, size=64)
        os.environ["DETECTRON2_DATASETS"] = os.environ["RC2L_CACHE"] = name
        os.chdir(name)
        for number, (key, kind, value) in enumerate(accepted()):
            begun = begun or key == args.first
            if not begun or not key.startswith(args.only):
                continue
            # Only numbers can be too much for this machine.
            run = attempt_apart if kind.startswith(("end", "above", "huge")) else attempt
            status, said = run(config_of(key, configs), key, value, Path(name) / str(number))
            end = ENDS.get(status, f"DIED with {status}")
            counts[end] += 1
            lines = [line for line in said.splitlines() if line.startswith("error: ")]
            print(f"{key} = {value!r} ({kind}): {end} {' '.join(lines)[:300]}", flush=True)
            shutil.rmtree(Path(name) / str(number), ignore_errors=True)
    print(f"{sum(counts.values())} accepted values: " + ", ".join(f"{n} {end}" for end, n in counts.items()))
    return 1 if any(end.startswith(("TRACEBACK", "DIED")) for end in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
