#!/usr/bin/env python3
"""Prove that a change of the code changes no number: ten steps of every method and auxiliary, before and after.

    python tests/golden.py record FILE                       # before the change
    python tests/golden.py check FILE                        # after it; exit 1 and a list where anything differs
    python tests/golden.py record FILE --checkpoints FOLDER  # keep those after step 5 too, FOLDER/<case>/
    python tests/golden.py check FILE --checkpoints FOLDER   # resume those too: the same last five steps?

Everything goes through train_net.py's ``main`` on tiny networks, and only what users rely on is looked at: the names
and exact values of the losses, and names and bytes of the weights of student and teacher in model_final.pth. Whatever
else has an entry there (projection heads, memories, a discriminator) may move and be renamed: its tensors are looked
for by their bytes, and what is not found again is said, but is no failure.

Numbers are those of one machine, one torch and one thread: record and check on the same.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from detectron2.utils.events import EventStorage, get_event_storage

import rc2l.engine.trainer
import train_net
from rc2l.data.datasets.shapes import generate_shapes
from rc2l.engine.run import argument_parser

REPO = Path(__file__).resolve().parent.parent
STEPS = 10
#: Networks of some 30 channels. A warm-up would leave the weights of ten steps nearly where they were; thresholds are
#: low, as nothing is confident that early, and a loss of zero proves nothing.
TINY = f"""MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 3
MODEL.MASK_FORMER.DROPOUT 0.1 RECO.DIM 16 RECO.NUM_QUERIES 16 RECO.NUM_KEYS 16 RECO.ADDED_PER_CLASS 8
RECO.PSEUDO_THRESHOLD 0.0 DGCL.DIM 16 DGCL.NEIGHBORS [2,4] DGCL.NUM_ANCHORS 8 DGCL.MEMORY_PER_CLASS 40
DGCL.REFRESHED_PER_CLASS 4 DGCL.MAX_PIXELS 300 DGCL.MEMORY_CONFIDENCE 0.0 DGCL.SKIP_CLASSES []
SELF_TRAINING.CONFIDENCE_THRESHOLD 0.1 SEMI.PSEUDO_LABEL.MIN_AREA 0 SEMI.BURN_IN 1 SOLVER.IMS_PER_BATCH 2
SOLVER.IMS_PER_BATCH_UNLABELED 2 SOLVER.WARMUP_ITERS 0 SOLVER.MAX_ITER {STEPS} SOLVER.CHECKPOINT_PERIOD {STEPS // 2}
SOLVER.CHECKPOINTS_KEPT 0 TEST.EVAL_PERIOD 0 TEST.MAX_IMAGES 1 DATASETS.SPLIT.FRACTION 1/4 DATALOADER.NUM_WORKERS 0
VIS_PERIOD 0 MODEL.DEVICE cpu SEED 3""".split()

RECO, DGCL = "RECO.ENABLED True", "DGCL.ENABLED True"
RECO_MEMORY = f"{RECO} RECO.MEMORY_PER_CLASS 20"
MASK_FORMER, PER_PIXEL = "Base-shapes.yaml", "Base-shapes-per-pixel.yaml"
CLASSMIX = "SEMI.METHOD self_training SEMI.MIXING.NAME classmix"
#: Case -> config below configs/shapes and its overrides. Only the two bases are read, as recipes may change.
CASES = {
    "supervised": (MASK_FORMER, "SEMI.METHOD supervised"),
    "supervised-reco": (MASK_FORMER, f"SEMI.METHOD supervised {RECO}"),
    "consistency": (MASK_FORMER, "SEMI.METHOD consistency SEMI.LOSS_RESOLUTION mask"),
    "rc2l": (MASK_FORMER, "SEMI.METHOD rc2l SEMI.LOSS_RESOLUTION mask"),
    "rc2l-crop": (MASK_FORMER, "SEMI.METHOD rc2l RC2L.CONSISTENCY_WEIGHT 0.5 SEMI.DEEP_SUPERVISION True"),
    "rc2l-reco": (MASK_FORMER, f"SEMI.METHOD rc2l {RECO}"),
    "rc2l-reco-memory": (MASK_FORMER, f"SEMI.METHOD rc2l {RECO_MEMORY}"),
    "rc2l-dgcl": (MASK_FORMER, f"SEMI.METHOD rc2l {DGCL}"),
    "rc2l-reco-memory-dgcl": (MASK_FORMER, f"SEMI.METHOD rc2l {RECO_MEMORY} {DGCL}"),
    "rc2l-masked-attention": (
        MASK_FORMER,
        "SEMI.METHOD rc2l MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME MultiScaleMaskedTransformerDecoder "
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE multi_scale_pixel_decoder MODEL.MASK_FORMER.TRAIN_NUM_POINTS 128",
    ),
    "self_training-cutout": (MASK_FORMER, "SEMI.METHOD self_training SEMI.MIXING.NAME cutout"),
    "self_training-cutmix": (MASK_FORMER, "SEMI.METHOD self_training SEMI.MIXING.NAME cutmix"),
    "self_training-classmix": (MASK_FORMER, CLASSMIX),
    "s4gan": (MASK_FORMER, "SEMI.METHOD s4gan SEMI.MIXING.NAME none S4GAN.SCORE_THRESHOLD 0.0"),
    "per-pixel-supervised": (PER_PIXEL, "SEMI.METHOD supervised"),
    "per-pixel-cutout": (PER_PIXEL, "SEMI.METHOD self_training SEMI.MIXING.NAME cutout"),
    "per-pixel-cutmix": (
        PER_PIXEL,
        "SEMI.METHOD self_training SEMI.MIXING.NAME cutmix SELF_TRAINING.KEPT_SHARE [0.8,1.0]",
    ),
    "per-pixel-classmix": (PER_PIXEL, CLASSMIX),
    "per-pixel-classmix-reco": (PER_PIXEL, f"{CLASSMIX} {RECO}"),
    "per-pixel-classmix-reco-memory": (PER_PIXEL, f"{CLASSMIX} {RECO_MEMORY}"),
    "per-pixel-classmix-dgcl": (PER_PIXEL, f"{CLASSMIX} {DGCL}"),
    "per-pixel-classmix-reco-memory-dgcl": (PER_PIXEL, f"{CLASSMIX} {RECO_MEMORY} {DGCL}"),
    "per-pixel-s4gan": (PER_PIXEL, "SEMI.METHOD s4gan SEMI.MIXING.NAME none S4GAN.SCORE_THRESHOLD 0.0"),
}


class Losses:
    """Every value that goes into detectron2's event storage by a name with ``loss`` in it: iteration -> name -> hex."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, str]] = {}
        self._put = EventStorage.put_scalar

    def __enter__(self) -> "Losses":
        def put_scalar(storage: EventStorage, name: str, value: float, *args, **kwargs) -> None:
            if "loss" in name:
                self.rows.setdefault(get_event_storage().iter, {})[name] = float(value).hex()
            self._put(storage, name, value, *args, **kwargs)

        EventStorage.put_scalar = put_scalar
        return self

    def __exit__(self, *_) -> None:
        EventStorage.put_scalar = self._put


def arguments_of(case: str) -> list[str]:
    name, overrides = CASES[case]
    return ["--config-file", str(REPO / f"configs/shapes/{name}"), *TINY, *overrides.split()]


def run(case: str, folder: Path, resume: bool = False) -> dict:
    """Losses of each step, hash of the networks' weights, hashes of all other tensors of the end of a run."""
    with Losses() as losses, contextlib.redirect_stdout(io.StringIO()):
        options = ["--resume"] * resume + arguments_of(case) + ["OUTPUT_DIR", str(folder)]
        train_net.main(argument_parser("").parse_args(options))
    content = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
    weights = {entry: hash_of_weights(content[entry]) for entry in ("model", "teacher")}
    rest = {key: value for key, value in content.items() if key not in ("model", "teacher", "optimizer", "scheduler")}
    others = sorted(bytes_hash(tensor)[:16] for tensor in tensors_of(rest) if tensor.numel() > 1)
    return {"losses": {str(step): row for step, row in losses.rows.items()}, "weights": weights, "others": others}


def hash_of_weights(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}".encode())
        digest.update(bytes_hash(state[name]).encode())
    return digest.hexdigest()


def bytes_hash(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def tensors_of(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def differences(old: dict, new: dict, from_step: int = 0) -> tuple[list[str], list[str]]:
    """Lines on what differs, and on what is only worth knowing."""
    lines = []
    for step in range(from_step, STEPS):
        before, after = old["losses"].get(str(step), {}), new["losses"].get(str(step), {})
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                values = [float.fromhex(row[name]) if name in row else "missing" for row in (before, after)]
                lines.append(f"step {step + 1}: {name} was {values[0]!r}, is {values[1]!r}")
    lines += [
        f"weights of '{entry}' differ" for entry in old["weights"] if old["weights"][entry] != new["weights"][entry]
    ]
    lost = (Counter(old["others"]) - Counter(new["others"])).total()
    notes = [f"{lost} of {len(old['others'])} tensors besides the networks are not found again"] if lost else []
    return lines, notes


def compare(case: str, old: dict, folder: Path, resume: bool = False) -> bool:
    """Run a case and print how it differs from ``old``; True if it does."""
    name = f"{case}, resumed after step {STEPS // 2}" if resume else case
    try:
        new = run(case, folder, resume)
    except (Exception, SystemExit) as error:
        print(f"{name}: FAILED: {type(error).__name__}: {error}", flush=True)
        return True
    lines, notes = differences(old, new, STEPS // 2 if resume else 0)
    print("\n  ".join([f"{name}: {'DIFFERS' if lines else 'same'}", *lines[:8], *notes]), flush=True)
    if len(lines) > 8:
        print(f"  ... and {len(lines) - 8} more")
    return bool(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="JSON of the numbers")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="only these")
    parser.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="of checkpoints after step 5")
    args = parser.parse_args()

    torch.set_num_threads(1)
    rc2l.engine.trainer.LOG_PERIOD = 1
    logging.disable(logging.WARNING)
    start, differing, recorded = time.process_time(), 0, {}
    old = json.loads(args.file.read_text()) if args.command == "check" else {}
    if old and old["torch"] != torch.__version__:
        print(f"recorded with torch {old['torch']}, this is {torch.__version__}: numbers may differ by that alone")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DETECTRON2_DATASETS"] = scratch
        generate_shapes(scratch, num_train=16, num_val=2, size=64)
        for case in args.cases:
            folder = Path(scratch, case)
            middle = f"model_{STEPS // 2 - 1:07d}.pth"
            if args.command == "record":
                recorded[case] = run(case, folder)
                print(f"{case}: recorded", flush=True)
                if args.checkpoints:
                    kept = args.checkpoints / case
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / middle, kept)
                    command = " ".join(["train_net.py --resume", *arguments_of(case), "OUTPUT_DIR ..."])
                    (kept / "command.txt").write_text(command.replace(f"{REPO}/", "") + "\n")
                continue
            if case not in old["cases"]:
                print(f"{case}: not recorded")
                continue
            differing += compare(case, old["cases"][case], folder)
            if args.checkpoints and (args.checkpoints / case / middle).exists():
                resumed = Path(scratch, f"{case}-resumed")
                resumed.mkdir()
                shutil.copy(args.checkpoints / case / middle, resumed)
                differing += compare(case, old["cases"][case], resumed, resume=True)
                shutil.rmtree(resumed)
            shutil.rmtree(folder, ignore_errors=True)
    if args.command == "record":
        args.file.write_text(json.dumps({"torch": torch.__version__, "cases": recorded}, indent=1))
    print(f"{len(args.cases)} cases, {differing} differing, {time.process_time() - start:.0f} s of CPU")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
