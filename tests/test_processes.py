"""Several processes: equal networks on all of them, and those of one process with the joined batch."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from torch import Tensor
from torch import distributed as dist

import train_net
from rc2l.collectives import broadcast_buffers
from rc2l.data.splits import build_split
from rc2l.engine.config_file import load_config
from rc2l.engine.evaluation_hook import EvaluationHook
from rc2l.engine.run import argument_parser
from rc2l.engine.signals import Agreement
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import PseudoLabels
from tests.processes import join_group, run_processes, torchrun
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder, metrics, same_weights  # noqa: F401  two are fixtures

SHORT = """SOLVER.IMS_PER_BATCH 4 SOLVER.IMS_PER_BATCH_UNLABELED 4 SOLVER.MAX_ITER 3 SEMI.BURN_IN 1 TEST.MAX_IMAGES 4
INPUT.CROP.SIZE [32,32] S4GAN.DISCRIMINATOR_WIDTH 16 SELF_TRAINING.CONFIDENCE_THRESHOLD 0.05 MODEL.DEVICE cpu""".split()
#: Where one process with the joined batch is the same mathematics: no batch norm, no dropout, no mixing. The change of
#: the weights is proportional to the gradient: Adam and clipping would make rounding visible.
PLAIN = """MODEL.RESNETS.NORM GN MODEL.SEM_SEG_HEAD.NORM GN MODEL.SEM_SEG_HEAD.ASPP_DROPOUT 0.0 SEMI.MIXING.NAME none
SOLVER.OPTIMIZER SGD SOLVER.BASE_LR 0.01 SOLVER.WARMUP_ITERS 0 SOLVER.CLIP_GRADIENTS.ENABLED False
SEMI.UNSUPERVISED_WEIGHT 5.0 RC2L.UNION sum SOLVER.MAX_ITER 2""".split()


#: Of a run that torchrun starts again.
LONG = [*TINY, *"SOLVER.MAX_ITER 16 SOLVER.CHECKPOINT_PERIOD 4 INPUT.CROP.SIZE [32,32]".split()]
#: train_net.py, whose second process dies by SIGKILL after step 9 of the first attempt.
DYING = """
import os, signal, sys
import train_net
from rc2l.engine.launch import launch
from rc2l.engine.run import argument_parser
from rc2l.engine.trainer import SemiSupervisedTrainer
run_step = SemiSupervisedTrainer.run_step
def run_step_and_die(self):
    run_step(self)
    if self.iter == 9 and self.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
SemiSupervisedTrainer.run_step = run_step_and_die
launch(train_net.main, argument_parser("").parse_args())
"""


@dataclass
class Case:
    """A run of three steps."""

    config: str
    overrides: list[str] = field(default_factory=list)
    #: It must equal one process with the joined batch.
    joined: bool = True
    #: What the second half of the joined batch lacks: "" (nothing), "labels", "pseudo labels".
    lacking: str = ""


def alone(*terms: str) -> list[str]:
    weights = {"RCC": 0.0, "SMC_FOCAL": 0.0, "SMC_DICE": 0.0, "RMC": 0.0, "RFC": 0.0} | dict.fromkeys(terms, 1.0)
    return [word for term, weight in weights.items() for word in (f"RC2L.{term}_WEIGHT", str(weight))]


CASES = {
    "supervised": Case("supervised"),
    "consistency": Case("consistency"),
    "rc2l": Case("rc2l"),
    "all terms and layers": Case(
        "rc2l", "SEMI.DEEP_SUPERVISION True RC2L.CONSISTENCY_WEIGHT 1.0 SEMI.LOSS_RESOLUTION mask".split()
    ),
    "RMC alone": Case("rc2l", alone("RMC")),
    "RFC alone": Case("rc2l", alone("RFC")),
    "RCC alone": Case("rc2l", alone("RCC")),
    "SMC alone": Case("rc2l", alone("SMC_FOCAL", "SMC_DICE")),
    "no confident pixel": Case("rc2l", "SEMI.PSEUDO_LABEL.MIN_CONFIDENCE 1.0".split()),
    "half without labels": Case("rc2l", lacking="labels"),
    "half without pseudo labels": Case("rc2l", lacking="pseudo labels"),
    # The area leaves one region in an image or none: fewer regions than there are processes.
    "few regions": Case("rc2l", "SEMI.PSEUDO_LABEL.MIN_AREA 500".split(), lacking="pseudo labels"),
    "mixed by cutmix": Case("rc2l", "SEMI.MIXING.NAME cutmix".split()),
    "mixed by classmix": Case("classmix_deeplab", "SEMI.MIXING.NAME classmix".split()),
    "self-training of MaskFormer": Case("rc2l", "SEMI.METHOD self_training".split()),
    "per-pixel supervised": Case("supervised_deeplab"),
    "per-pixel self-training": Case("classmix_deeplab"),
    "per-pixel half without labels": Case("classmix_deeplab", lacking="labels"),
    "per-pixel half without pseudo labels": Case("classmix_deeplab", lacking="pseudo labels"),
    "fixmatch": Case("classmix_deeplab", "SEMI.METHOD fixmatch UNIMATCH.CONFIDENCE_THRESHOLD 0.05".split()),
    # Below, each process draws its own dropout, boxes, classes and pixels, or sees its own share only.
    "batch norm and dropout": Case("rc2l", "MODEL.MASK_FORMER.DROPOUT 0.1".split(), joined=False),
    "rc2l with reco": Case("rc2l-reco", joined=False),
    "reco, half without labels": Case("rc2l-reco", joined=False, lacking="labels"),
    "reco, half without pseudo labels": Case("rc2l-reco", joined=False, lacking="pseudo labels"),
    "rc2l with dgcl": Case("rc2l-dgcl", joined=False),
    "dgcl, half without labels": Case("rc2l-dgcl", joined=False, lacking="labels"),
    "dgcl, half without pseudo labels": Case("rc2l-dgcl", joined=False, lacking="pseudo labels"),
    "cutmix": Case("cutmix_deeplab", joined=False),
    "cutmix with dgcl and reco": Case(
        "cutmix-dgcl_deeplab", "RECO.ENABLED True RECO.MEMORY_PER_CLASS 50".split(), joined=False
    ),
    "classmix with reco": Case("classmix-reco_deeplab", joined=False),
    "s4gan": Case("s4gan_deeplab", joined=False),
    "unimatch": Case("cutmix_deeplab", "SEMI.METHOD unimatch".split(), joined=False),
    "unimatch 2": Case("cutmix_deeplab", "SEMI.METHOD unimatch UNIMATCH.VERSION 2".split(), joined=False),
    "s4gan, half without labels": Case("s4gan_deeplab", joined=False, lacking="labels"),
}
#: Objectives with a memory.
BANKS = ("dgcl", "reco")
JOINED = [name for name, case in CASES.items() if case.joined]
#: Cases that are evaluated and saved at their end -> number of networks. The others end with their last step.
SCORED = {"rc2l": 2, "fixmatch": 1, "s4gan": 2}
#: With more than two processes, what depends on their number: how losses, memories and images are shared. In the other
#: cases each process has another share of the same.
OF_MANY = [*JOINED, "cutmix with dgcl and reco", "dgcl, half without labels", "unimatch 2", "s4gan"]


def cases_of(world_size: int) -> list[str]:
    return list(CASES) if world_size == 2 else OF_MANY


def trainer_of(case: Case, folder: Path, *overrides: str) -> SemiSupervisedTrainer:
    folder.mkdir(parents=True, exist_ok=True)
    words = [*TINY, *SHORT, *(PLAIN if case.joined else []), *case.overrides, *overrides, "OUTPUT_DIR", str(folder)]
    cfg = load_config(str(REPO / f"configs/shapes/{case.config}.yaml"), words)
    # In double precision no rounding moves an activation across ReLU's 0 or to another maximum of its window, which
    # would change the backbone's gradient by up to 1e-2. The losses compute in single precision as ever.
    torch.set_default_dtype(torch.float64 if case.joined else torch.float32)
    try:
        return SemiSupervisedTrainer(cfg, build_split(cfg))
    finally:
        torch.set_default_dtype(torch.float32)


def change_batches(trainer: SemiSupervisedTrainer, change: Callable[[TrainingBatch, int], None]) -> None:
    """Let ``change(batch, iteration)`` work on each batch in place before the step."""
    step = trainer.step

    def changed_step(batch: TrainingBatch, iteration: int):
        change(batch, iteration)
        return step(batch, iteration)

    trainer.step = changed_step


def paint_pseudo_labels(trainer: SemiSupervisedTrainer) -> None:
    """Let the brightness of a pixel decide between three classes.

    An untrained teacher sees one class everywhere, which leaves nothing to contrast.
    """
    label = trainer.label

    def painted_label(batch: TrainingBatch) -> dict[str, PseudoLabels]:
        pseudo = label(batch)["student"]
        classes = (batch.unlabeled_images.float().mean(1) / 86).to(torch.uint8)
        label_map = torch.where(pseudo.label_map == 255, pseudo.label_map, classes)
        return {"student": PseudoLabels(label_map, pseudo.confidence, pseudo.entropy)}

    trainer.label = painted_label


def take_away(trainer: SemiSupervisedTrainer, what: str) -> None:
    """Ignore the labels, or all pixels of the pseudo labels, in the second half of the joined batch."""
    rank, world_size = comm.get_rank(), comm.get_world_size()

    def change(batch: TrainingBatch, iteration: int) -> None:
        target = batch.labeled_targets if what == "labels" else batch.unlabeled_valid
        first = rank * len(target)
        half = len(target) * world_size // 2
        target[max(half - first, 0) :] = 255 if what == "labels" else False

    if what:
        change_batches(trainer, change)


def state(trainer: SemiSupervisedTrainer) -> dict[str, Tensor]:
    parts = trainer.parts_of_a_step()
    objectives = parts.pop("objectives").state_dict()
    states = {name: part.state_dict() for name, part in parts.items() if name != "scaler"}
    states |= {name: values.get("discriminator", values) for name, values in objectives.items()}
    return {f"{name}.{key}": tensor.clone() for name, values in states.items() for key, tensor in values.items()}


def roughen_images(trainer: SemiSupervisedTrainer) -> None:
    """Add the same noise to all images: in their flat backgrounds the activations of a pooling window are all equal."""
    noise = 20 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))

    def change(batch: TrainingBatch, iteration: int) -> None:
        for name in ("labeled_images", "unlabeled_images"):
            images = getattr(batch, name)
            setattr(batch, name, (images + noise).clamp(0, 255).to(images.dtype))

    change_batches(trainer, change)


def train(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All networks before and after a run."""
    output = folder / name.replace(" ", "_")
    trainer = trainer_of(CASES[name], output)
    roughen_images(trainer)
    paint_pseudo_labels(trainer)
    take_away(trainer, CASES[name].lacking)
    if name not in SCORED:
        ends = EvaluationHook | PeriodicCheckpointer
        trainer._hooks = [hook for hook in trainer._hooks if not isinstance(hook, ends)]
    before = state(trainer)
    trainer.train()
    return before, state(trainer)


def digest(network: dict[str, Tensor]) -> dict[str, str]:
    """A hash of each tensor's bytes."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in network.items()}


def diverge(rank: int, folder: Path) -> str:
    """What a process says when the images of rank 1 become NaN in iteration 1."""

    def change(batch: TrainingBatch, iteration: int) -> None:
        if rank == 1 and iteration == 1:
            batch.labeled_images = batch.labeled_images.float().fill_(float("nan"))

    trainer = trainer_of(CASES["rc2l"], folder / "diverging")
    change_batches(trainer, change)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    return str(error.value)


def train_long(rank: int, folder: Path, datasets: Path) -> None:  # noqa: F811  no fixture here
    """The undisturbed run of :data:`DYING`."""
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    join_group(rank, 2, folder)
    arguments = ["--config-file", str(REPO / "configs/shapes/rc2l.yaml"), "--num-gpus", "0", *LONG]
    train_net.main(argument_parser("").parse_args([*arguments, "OUTPUT_DIR", str(folder)]))
    dist.destroy_process_group()


def work(rank: int, world_size: int, folder: Path, datasets: Path) -> None:  # noqa: F811  no fixture here
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    join_group(rank, world_size, folder)
    agreed = Agreement().any(rank == world_size - 1, False)
    norm = torch.nn.BatchNorm1d(3)
    norm.running_mean.fill_(rank)
    norm.num_batches_tracked.fill_(rank)
    broadcast_buffers(norm)
    with pytest.raises(ValueError) as refusal:
        trainer_of(CASES["supervised"], folder / "refused", "SOLVER.IMS_PER_BATCH", "5").train()
    result = {
        "agreed": agreed,
        "buffers": (norm.running_mean.tolist(), int(norm.num_batches_tracked)),
        "refusal": str(refusal.value),
        "divergence": diverge(rank, folder),
        "digests": {},
        "entries": {},
        "networks": {},
    }
    for name in cases_of(world_size):
        _, after = train(name, folder)
        result["digests"][name] = digest(after)
        result["entries"][name] = {bank: int(after.get(f"{bank}.count", torch.zeros(1)).sum()) for bank in BANKS}
        if rank == 0 and CASES[name].joined:
            result["networks"][name] = after
    torch.save(result, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def processes(request, tmp_path_factory, datasets) -> Iterator[tuple[list[dict], Path]]:  # noqa: F811
    """What each process of 2 and of 4 ends with."""
    folder = tmp_path_factory.mktemp(f"processes{request.param}")
    run_processes(work, request.param, request.param, folder, datasets)
    files = [folder / f"{rank}.pth" for rank in range(request.param)]
    results = [torch.load(path, weights_only=True) for path in files]
    for path in files:
        path.unlink()
    yield results, folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, datasets) -> dict[str, tuple[dict, dict]]:  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        return {name: train(name, tmp_path_factory.mktemp("alone")) for name in JOINED}


def test_all_processes_end_with_the_same_networks(processes):
    """Buffers too: the teacher's batch-norm statistics are what its pseudo labels come from."""
    ranks, _ = processes
    for case in cases_of(len(ranks)):
        assert all(other["digests"][case] == ranks[0]["digests"][case] for other in ranks[1:]), case
    assert all(ranks[0]["entries"]["cutmix with dgcl and reco"][bank] > 0 for bank in BANKS)


def parts(network: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names of the learned tensors by part: student's or teacher's backbone, pixel decoder, and the rest."""
    found = {}
    for name in network:
        part = next((part for part in ("backbone", "pixel_decoder") if f".{part}." in name), "heads")
        found.setdefault(f"{name.split('.')[0]} {part}", []).append(name)
    return found


def relative_errors(before: dict, after: dict, other: dict) -> dict[str, float]:
    """For each part of the networks: distance of two results, relative to how far the weights have moved."""
    errors = {}
    for part, names in parts(before).items():
        start, end, theirs = (torch.cat([state[name].flatten() for name in names]) for state in (before, after, other))
        errors[part] = ((theirs - end).norm() / (end - start).norm()).item()
    return errors


@pytest.mark.parametrize("case", JOINED)
def test_they_equal_one_process_with_the_joined_batch(case, processes, one_process):
    ranks, _ = processes
    errors = relative_errors(*one_process[case], ranks[0]["networks"][case])
    # Rounding gives up to 1e-6; normalising the smallest of the losses by each process's own regions gives 1e-3.
    assert len(errors) in (2, 4, 6) and max(errors.values()) < 1e-5, errors


def test_one_process_raises_a_flag_for_all_and_gives_its_buffers_to_all(processes):
    ranks, _ = processes
    for result in ranks:
        assert tuple(result["agreed"]) == (True, False)
        assert result["buffers"] == ([0.0, 0.0, 0.0], 0)


def test_a_batch_that_does_not_divide_by_the_processes_is_refused_by_all(processes):
    ranks, _ = processes
    for result in ranks:
        assert result["refusal"].startswith("SOLVER.IMS_PER_BATCH is 5; ")
        assert result["refusal"].endswith(f"must be a positive multiple of their number, {len(ranks)}")


def test_nan_in_one_process_stops_all_in_the_same_step(processes):
    ranks, folder = processes
    for rank, result in enumerate(ranks):
        # The others have finite losses; it reaches them with the gradient, which all share.
        innocent = "not finite: gradient_norm = nan (the losses of this process are finite)"
        found = "not finite: total_loss = nan, loss_ce = nan" if rank == 1 else innocent
        assert result["divergence"].startswith(f"iteration 1: {found}")
        dump = folder / f"diverging/divergence_0000001_rank{rank}.pth"
        assert result["divergence"].endswith(f"python tools/replay.py {dump}")
        step = torch.load(dump, weights_only=True)["step"]
        assert (step["rank"], step["world_size"]) == (rank, len(ranks))


def test_each_test_image_is_counted_once(processes):
    _, folder = processes
    tables = list(folder.glob("*/inference/*.json"))
    assert len(tables) == sum(SCORED.values())
    for path in tables:
        assert json.loads(path.read_text())["num_images"] == 4


def test_torchrun_starts_a_killed_process_again_from_the_checkpoint(tmp_path, datasets):  # noqa: F811
    (tmp_path / "dying.py").write_text(DYING)
    restarted = torchrun(2, str(tmp_path / "dying.py"), *LONG, "OUTPUT_DIR", str(tmp_path / "killed"), restarts=1)
    (tmp_path / "straight").mkdir()
    run_processes(train_long, 2, tmp_path / "straight", datasets)
    said = restarted.communicate(timeout=200)[0]
    assert restarted.returncode == 0, said[-3000:]
    assert "Resuming from" in said
    table = json.loads((tmp_path / "killed/inference/shapes_sem_seg_val_teacher.json").read_text())
    assert table["num_images"] == 4
    assert same_weights(tmp_path / "killed/model_final.pth", tmp_path / "straight/model_final.pth")
    rows = [[row["iteration"] for row in metrics(tmp_path / name)] for name in ("killed", "straight")]
    assert rows[0] == rows[1]
