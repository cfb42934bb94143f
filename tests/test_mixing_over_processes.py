"""The unlabelled images of a step are mixed as one batch: 1, 2 and 4 processes give the same bits."""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from rc2l.collectives import from_next_process
from rc2l.config import get_rc2l_cfg
from rc2l.data.mixing import PARTNERED
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.semi.method import method_of
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import PseudoLabels, View
from tests.processes import join_group, run_processes

TOTAL, SIZE, CLASSES = 4, 24, 6
MIXINGS = [("cutmix", "free"), ("cutmix", "half"), ("classmix", "free"), ("cutout", "free"), ("none", "free")]


def step_inputs(share: slice) -> tuple[TrainingBatch, PseudoLabels]:
    """A process's share of one fixed step, whose images end in padding of different height."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.randint(0, 256, (TOTAL, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    label_map = torch.randint(0, CLASSES, (TOTAL, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    confidence, entropy = torch.rand(2, TOTAL, SIZE, SIZE, generator=generator)
    rows = torch.arange(SIZE)[None, :, None]
    valid = (rows < SIZE - 5 * torch.arange(TOTAL)[:, None, None]).expand(TOTAL, SIZE, SIZE)
    label_map = torch.where(valid, label_map, 255).to(torch.uint8)
    own = [tensor[share] for tensor in (strong, valid, label_map, confidence * valid, entropy)]
    batch = TrainingBatch(own[0][:0], own[2][:0], own[0], own[0][None], own[1], [], [])
    return batch, PseudoLabels(*own[2:])


def mixed(name: str, box: str, rank: int, world_size: int) -> View:
    cfg = get_rc2l_cfg()
    cfg.SEMI.MIXING.NAME, cfg.SEMI.MIXING.BOX, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = name, box, CLASSES
    trainer = SemiSupervisedTrainer.__new__(SemiSupervisedTrainer)  # mixing needs no networks
    trainer.cfg, trainer.rank, trainer.seed, trainer.iter, trainer.following = cfg, rank, 3, 7, []
    share = TOTAL // world_size
    return trainer.mix(*step_inputs(slice(rank * share, (rank + 1) * share)), 0)


def work(rank: int, world_size: int, folder: Path) -> None:
    join_group(rank, world_size, folder)
    sent = [torch.full((1, 3), rank, dtype=torch.uint8), torch.full((1, 2, 2), rank + 0.5), torch.tensor([rank == 0])]
    torch.save(
        [from_next_process(sent), *(vars(mixed(name, box, rank, world_size)) for name, box in MIXINGS)],
        folder / f"{world_size}_{rank}.pth",
    )
    dist.destroy_process_group()


@pytest.mark.whole_run
@pytest.mark.parametrize("world_size", [2, 4])
def test_mixing_does_not_depend_on_the_number_of_processes(tmp_path, world_size):
    run_processes(work, world_size, world_size, tmp_path)
    ranks = [torch.load(tmp_path / f"{world_size}_{rank}.pth", weights_only=True) for rank in range(world_size)]
    for rank, (received, *_) in enumerate(ranks):
        following = (rank + 1) % world_size
        assert received[0].tolist() == [[following] * 3] and received[1].tolist() == [[[following + 0.5] * 2] * 2]
        assert received[2].tolist() == [following == 0]
    for case, (name, box) in enumerate(MIXINGS, start=1):
        for field, alone in vars(mixed(name, box, 0, 1)).items():
            together = torch.cat([views[case][field] for views in ranks])
            assert torch.equal(together, alone), (name, box, field)


@pytest.mark.parametrize(("name", "box"), [case for case in MIXINGS if case[0] in PARTNERED])
def test_what_is_pasted_comes_from_the_next_position_with_its_validity(name, box):
    batch, pseudo = step_inputs(slice(None))
    views = mixed(name, box, 0, 1)
    pasted = (views.images != batch.strong_images[0]).any(1)
    assert (pasted.flatten(1).float().mean(1) > 0.1).all()
    same_image = (views.images == batch.strong_images[0].roll(-1, 0)).all(1)
    assert same_image[pasted].all()
    before = (batch.unlabeled_valid, pseudo.label_map, pseudo.confidence, pseudo.entropy)
    after = (views.valid, views.targets, views.confidence, views.entropy)
    for own, result in zip(before, after, strict=True):
        assert torch.equal(result[pasted], own.roll(-1, 0)[pasted])
    padding = pasted & ~batch.unlabeled_valid.roll(-1, 0)
    assert padding.any() and not views.valid[padding].any() and (views.targets[padding] == 255).all()


@pytest.mark.parametrize("name", PARTNERED)
def test_one_unlabeled_image_in_all_is_refused_where_mixing_needs_a_partner(name):
    cfg = get_rc2l_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.SEMI.MIXING.NAME, cfg.SOLVER.IMS_PER_BATCH_UNLABELED = "MaskFormer", name, 1
    with pytest.raises(
        ValueError, match=rf"^SOLVER\.IMS_PER_BATCH_UNLABELED is 1, but {name} .*2 or more.*cutout or none"
    ):
        method_of(cfg)
    cfg.SEMI.METHOD = "supervised"
    method_of(cfg)
    cfg.SEMI.METHOD, cfg.SEMI.MIXING.NAME = "rc2l", "cutout"
    method_of(cfg)
