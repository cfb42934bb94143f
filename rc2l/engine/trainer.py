"""The order of one training step, and the hooks around it. Nothing about maths."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rc2l.data.loader import TrainingBatch, build_test_loader, build_train_loader
from rc2l.data.splits import Split
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.divergence import CollapseWatch, FiniteGuard, not_finite, write_dump
from rc2l.engine.evaluation_hook import EvaluationHook
from rc2l.engine.history import MetricHistory
from rc2l.engine.launch import (
    average_over_processes,
    broadcast_buffers,
    from_next_process,
    gather_over_processes,
)
from rc2l.engine.monitor import pseudo_label_metrics, write_metrics
from rc2l.engine.optimizer import amp_dtype, build_optimizer, clip_gradients
from rc2l.engine.resume import RunRecord, keep_schedule
from rc2l.engine.signals import Agreement, StopHook, StopRequest
from rc2l.evaluation import evaluate_networks
from rc2l.modeling.projection import TrainingNetwork, build_projection
from rc2l.modeling.weight_sources import initial_weights
from rc2l.modeling.weights import load_weights
from rc2l.semi.adversary import Adversary
from rc2l.semi.memory_bank import build_memory_bank, build_reco_bank
from rc2l.semi.methods import Method
from rc2l.semi.pseudo_label import PseudoLabels, pseudo_labels
from rc2l.semi.strong_views import StrongViews, strong_views
from rc2l.semi.teacher import Teacher

logger = logging.getLogger(__name__)

#: Iterations between two rows of metrics.
LOG_PERIOD = 20


class SemiSupervisedTrainer(TrainerBase):
    """Student-teacher training on a labelled and an unlabelled stream (RC²L section 3.1).

    Every random number of a step is drawn from (seed, iteration, process), those of mixing from (seed, iteration,
    position of the image in the step's unlabelled batch), so the state of a run is the networks, the optimizer, the
    scheduler, the memory bank, the iteration, the best score and the metrics that are not yet in the files. The
    unlabelled images of a step are mixed as one batch, whatever the number of processes.

    Args:
        cfg: the full config.
        split: labelled and unlabelled images.
    """

    def __init__(self, cfg: CfgNode, split: Split) -> None:
        super().__init__()
        self.cfg = cfg
        self.split = split
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()
        self.device = torch.device(cfg.MODEL.DEVICE)
        torch.manual_seed(self.seed)  # the same initial weights in every process
        self.student = build_model(cfg)
        if weights := initial_weights(cfg):
            load_weights(self.student, weights, cfg=cfg)
        teacher = cfg.SEMI.TEACHER
        self.teacher = Teacher(self.student, teacher.DECAY, cfg.SEMI.BURN_IN, teacher.AVERAGE_BUFFERS)
        self.projection = build_projection(cfg, self.student)
        self.memory_bank = build_memory_bank(cfg, self.student)
        self.reco_bank = build_reco_bank(cfg)
        self.method = Method(cfg, self.memory_bank, self.reco_bank)
        self.adversary = Adversary(cfg) if self.method.name == "s4gan" else None
        trained = [self.student] + ([self.projection] if self.projection else [])
        self.optimizer = build_optimizer(cfg, *trained)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.amp_dtype = amp_dtype(cfg)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.parameters = [p for network in trained for p in network.parameters() if p.requires_grad]
        self.class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
        parts = self.parts_of_a_step()
        self.checkpointer = RunCheckpointer(
            parts.pop("model"),
            cfg.OUTPUT_DIR,
            kept=cfg.SOLVER.CHECKPOINTS_KEPT,
            save_to_disk=comm.is_main_process(),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            trainer=self,
            **parts,
        )
        self.record = RunRecord(cfg, split)
        self.checkpointer.examine = lambda path, content: self.record.examine(path, content, self.optimizer)
        self.model = TrainingNetwork(self.student, self.projection) if self.projection else self.student
        if self.world_size > 1:
            device_ids = [self.device.index or torch.cuda.current_device()] if self.device.type == "cuda" else None
            # Buffers are shared after the forward instead (see step), where the teacher and checkpoints take them.
            self.model = DistributedDataParallel(self.model, device_ids=device_ids, broadcast_buffers=False)
        self.model.train()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: dict[str, float] = {}
        self.stop_agreed = False
        self._guard = FiniteGuard(self.student, cfg.SOLVER.MAX_SKIPPED_STEPS if self.scaler.is_enabled() else 0)
        #: What this process's last image was mixed with in the last step: first tensors of the next process.
        self.following: list[Tensor] = []
        self.stop_request = StopRequest()
        self._agreement = Agreement()
        collapse = cfg.SEMI.COLLAPSE
        self._collapse = CollapseWatch(collapse.MAX_CLASS_SHARE, collapse.MIN_KEPT_SHARE, collapse.PATIENCE)
        self._history = MetricHistory(cfg.OUTPUT_DIR, LOG_PERIOD) if comm.is_main_process() else None
        self.evaluation = EvaluationHook(cfg.TEST.EVAL_PERIOD, self.evaluate, self.checkpointer)
        self.register_hooks(self._build_hooks())

    def _build_hooks(self) -> list[hooks.HookBase | None]:
        on_main = comm.is_main_process()
        checkpointer = hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD)
        # The checkpoint comes before the evaluation, whose failure then costs no step; a resumed run makes up for it.
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            checkpointer if on_main else None,
            self.evaluation,
            self._history,
            StopHook(),
        ]

    def state_dict(self) -> dict:
        # After the last step detectron2's counter stands one further.
        return {
            "iteration": min(self.iter, self.max_iter - 1),
            "seed": self.seed,
            **self.evaluation.state_dict(),
            "world_size": self.world_size,
            "skipped_steps": self._guard.skipped_steps,
            "collapse": self._collapse.state_dict(),
            "history": self._history.state_dict(),
            "record": self.record.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self.start_iter = state_dict["iteration"] + 1
        self.seed = state_dict["seed"]
        self.evaluation.load_state_dict(state_dict)
        self._guard.skipped_steps = state_dict["skipped_steps"]
        self._collapse.load_state_dict(state_dict["collapse"])
        if self._history:
            self._history.load_state_dict(state_dict["history"])
        if state_dict["world_size"] != self.world_size:
            logger.warning(
                f"the run had {state_dict['world_size']} process(es) and goes on with {self.world_size}: each step "
                "still sees the same images, mixed alike, but dropout, the pixels drawn for contrast, batch-norm "
                "statistics and rounding differ: not the same bit for bit"
            )

    def resume(self) -> bool:
        """Continue from the newest checkpoint in OUTPUT_DIR, by the schedule of this config; False if there is none."""
        restore_schedule = keep_schedule(self.optimizer, self.scheduler)
        found = self.checkpointer.resume()
        if found:
            restore_schedule(self.start_iter)
        else:
            logger.warning(f"--resume: no checkpoint in {self.cfg.OUTPUT_DIR}, starting from iteration 0")
        self.evaluation.forget_best_without_file(Path(self.cfg.OUTPUT_DIR))
        return found

    def train(self) -> dict[str, float]:
        """Train up to SOLVER.MAX_ITER; returns the scores of the last evaluation."""
        self._loader = build_train_loader(self.cfg, self.split, self.start_iter, seed=self.seed)
        self._batches = iter(self._loader)
        try:
            with self.stop_request:
                super().train(self.start_iter, self.max_iter)
        finally:
            # Left to the garbage collector, the loader's workers are waited for in vain, 5 s each.
            del self._batches, self._loader
        return self.results

    def before_train(self) -> None:
        super().before_train()
        self.evaluation.catch_up()
        if self._history:
            self._history.catch_up()

    def after_train(self) -> None:
        # Resumed after its last step, the run has none left, and detectron2's counter would stand one too far.
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def evaluate(self) -> dict[str, float]:
        """Scores of teacher and student on the test sets, by name."""
        networks = {"teacher": self.teacher.model, "student": self.student}
        broadcast_buffers(*networks.values())
        self.results = evaluate_networks(self.cfg, networks, build_test_loader)
        picture = self.method.relation_picture(self.class_names, self.iter) if comm.is_main_process() else None
        if picture is not None:
            self.storage.put_image("reco/class_relations", picture)
        return self.results

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._batches)
        self.stop_request.failure = self._loader.death
        data_time = time.perf_counter() - start
        self.seed_step()
        try:
            metrics = self.step(batch.to(self.device), self.iter)
        except FloatingPointError as error:
            files = ", ".join(batch.labeled_files + batch.unlabeled_files)
            advice = self._dump(batch, str(error))
            message = f"iteration {self.iter}: {error}. Images of this step: {files}. {advice}"
            raise FloatingPointError(message) from error
        if metrics and ((self.iter + 1) % LOG_PERIOD == 0 or self.iter + 1 == self.max_iter):
            own = write_metrics(self.storage, metrics(), data_time)
            self._collapse.look(own, self.iter)

    def step(self, batch: TrainingBatch, iteration: int) -> Callable[[], dict[str, Tensor]] | None:
        """One training step; returns a function that computes its metrics, called only when they are logged.

        None where the step was skipped (SOLVER.MAX_SKIPPED_STEPS).

        Raises:
            FloatingPointError: a loss or a gradient is not finite; weights and optimizer are as before the step.
        """
        self._guard.begin()
        pseudo = views = None
        images = batch.labeled_images
        if self.method.semi_supervised and iteration >= self.cfg.SEMI.BURN_IN:
            pseudo = self.label(batch)
            views = self.mix(batch, pseudo)
            images = torch.cat([images, views.images])

        with self._autocast():
            output = self.model(images)
        output = output.float()
        num_labeled = len(batch.labeled_images)
        labeled, strong = output[:num_labeled], output[num_labeled:] if views else None
        progress = iteration / self.max_iter
        losses = self.method.losses(
            labeled, batch.labeled_targets, strong, views, average_over_processes, progress=progress
        )
        if self.adversary and views:
            normalized = self.student.normalize(images)
            losses |= self.adversary.losses(
                normalized, output, batch.labeled_targets, views.valid, average_over_processes
            )
        total = sum(losses.values())

        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        broadcast_buffers(self.student)
        norm = clip_gradients(self.cfg, self.parameters)
        # Under fp16 the scaler looks after gradients: it skips the update and lowers its scale.
        checked = {"total_loss": total, **losses} | ({} if self.scaler.is_enabled() else {"gradient_norm": norm})
        bad = not_finite(checked)
        self.stop_agreed, diverged = self._agreement.any(self.stop_request.wanted, bool(bad))
        if diverged:
            self.optimizer.zero_grad()
            if self._guard.skip(iteration):
                self.scaler.update()
                return None
            more = "" if not_finite(losses) else " (the losses of this process are finite)"
            raise FloatingPointError(f"not finite: {', '.join(bad) or 'a loss of another process'}{more}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.adversary:
            group = self.optimizer.param_groups[0]
            self.adversary.update(group["lr"] / group["initial_lr"], average_over_processes)
        self.method.remember(gather_over_processes)
        decay = self.teacher.update(self.student, iteration)

        def metrics() -> dict[str, Tensor]:
            values = {"total_loss": total, **losses, "teacher/decay": total.new_tensor(decay)}
            if views:
                values |= pseudo_label_metrics(pseudo, views.targets, self.class_names)
            values |= self.method.watched(self.class_names) | (self.adversary.watched if self.adversary else {})
            return values

        return metrics

    def _dump(self, batch: TrainingBatch, error: str) -> str:
        step = {"iteration": self.iter, "seed": self.seed, "rank": self.rank, "world_size": self.world_size}
        states = {name: part.state_dict() for name, part in self.parts_of_a_step().items()}
        step |= {"error": error, "following": self.following}
        return write_dump(self.cfg.OUTPUT_DIR, self.cfg, step, batch, states)

    def parts_of_a_step(self) -> dict[str, object]:
        """What a step computes with, by the names that checkpoints and dumps give it; each has a state dict."""
        parts = {"model": self.student, "teacher": self.teacher.model, "scaler": self.scaler}
        optional = {"projection": self.projection, "memory_bank": self.memory_bank, "reco_bank": self.reco_bank}
        optional |= {"adversary": self.adversary}
        return parts | {name: part for name, part in optional.items() if part}

    @torch.no_grad()
    def label(self, batch: TrainingBatch) -> PseudoLabels:
        """The teacher's pseudo labels of the weak views."""
        with self._autocast():
            output = self.teacher.model(batch.unlabeled_images, auxiliary=False)
        minimum = self.cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE
        entropy = self.method.needs_entropy
        return pseudo_labels(output.float(), batch.unlabeled_valid, minimum, with_entropy=entropy)

    def mix(self, batch: TrainingBatch, pseudo: PseudoLabels) -> StrongViews:
        """The strong views of the unlabelled images, mixed as one batch over all processes."""
        images = batch.strong_images
        first = self.rank * len(images)  # position in the step's batch
        generators = [self._generator("mixing", first + i) for i in range(len(images))]
        return strong_views(self.cfg, images, batch.unlabeled_valid, pseudo, generators, self.exchange)

    def exchange(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the next process's first image, for this process's own."""
        self.following = from_next_process(tensors)
        return self.following

    def seed_step(self) -> None:
        """Set torch's generator, which dropout draws from, to the start of this iteration."""
        torch.manual_seed(int(self._generator("network", self.rank).integers(2**63)))

    def _generator(self, purpose: str, number: int) -> np.random.Generator:
        """Random numbers of this iteration and a process or position, for one purpose."""
        return np.random.default_rng([self.seed, self.iter, number, *purpose.encode()])

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)
