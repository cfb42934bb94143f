"""Two processes give the gradient of one process with the joined batch."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rc2l.collectives import average_over_processes
from rc2l.engine.config_file import load_config
from rc2l.semi.method import method_of
from tests.processes import join_group, run_processes
from tests.shared_data import REPO
from tests.steps import learner_of, step_of, view_of

#: No batch norm and no dropout: only then do the two have the same mathematics.
SMALL = """MODEL.RESNETS.NORM FrozenBN MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32
MODEL.MASK_FORMER.HIDDEN_DIM 32 MODEL.MASK_FORMER.DIM_FEEDFORWARD 32 MODEL.MASK_FORMER.DEC_LAYERS 2 MODEL.DEVICE cpu
MODEL.MASK_FORMER.DROPOUT 0.0 MODEL.SEM_SEG_HEAD.NORM GN MODEL.SEM_SEG_HEAD.ASPP_DROPOUT 0.0
SELF_TRAINING.CONFIDENCE_THRESHOLD 0.5""".split()


def gradients(method: str, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
    """Gradients of one step on this rank's share of a fixed batch whose images hold different numbers of regions."""
    torch.manual_seed(0)
    config, *overrides = CONFIGS[method]
    cfg = load_config(str(REPO / f"configs/shapes/{config}.yaml"), [*SMALL, *overrides])
    student = build_model(cfg)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    targets = torch.randint(0, 9, (8, 32, 32), dtype=torch.uint8)
    confidence = torch.rand(8, 32, 32)
    targets[0] = 255  # rank 0 has an image without any label, and rank 1 one with a single region
    targets[1, :, 16:] = 255
    targets[2] = 3
    targets[6, 8:] = 1
    labeled, unlabeled = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size), None
    unlabeled = slice(4 + labeled.start, 4 + labeled.stop)
    model = DistributedDataParallel(student) if world_size > 1 else student
    learner, semi_supervised = learner_of(cfg, student), method_of(cfg).needs.unlabeled
    chosen = torch.cat([images[labeled], images[unlabeled]]) if semi_supervised else images[labeled]
    output = model(chosen).float()
    count = labeled.stop - labeled.start
    view = view_of(targets[unlabeled], confidence[unlabeled]) if semi_supervised else None
    step = step_of(learner, output[:count], targets[labeled], output[count:], view, average=average_over_processes)
    losses = learner.losses(step)
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def work(rank: int, folder: Path) -> None:
    join_group(rank, 2, folder)
    torch.save({method: gradients(method, rank, 2) for method in CONFIGS}, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


#: Name -> config of shapes, overrides.
CONFIGS = {
    **{name: (name,) for name in ("supervised", "consistency", "rc2l", "supervised_deeplab", "classmix_deeplab")},
    "fixmatch": ("classmix_deeplab", "SEMI.METHOD", "fixmatch", "UNIMATCH.CONFIDENCE_THRESHOLD", "0.5"),
}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gradients")
    run_processes(work, 2, folder)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.whole_run
@pytest.mark.parametrize("method", CONFIGS)
def test_two_processes_give_the_gradient_of_the_joined_batch(method, of_two_processes):
    expected = gradients(method)
    for name, gradient in expected.items():
        assert gradient is not None, f"{name} gets no gradient from {method}"
        first, second = (result[method][name] for result in of_two_processes)
        assert torch.equal(first, second), name
        error = (first - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-3, (name, error.item())
