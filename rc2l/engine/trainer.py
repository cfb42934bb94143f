"""The order of one training step, and the hooks around it. Nothing about maths."""

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.engine.defaults import default_writers
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rc2l.data.loader import TrainingBatch, build_test_loader, build_train_loader
from rc2l.data.mixing import cutmix_boxes, half_area_boxes, mix_views
from rc2l.data.splits import Split
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.launch import average_over_processes, broadcast_buffers
from rc2l.engine.monitor import pseudo_label_metrics, write_metrics
from rc2l.engine.optimizer import build_optimizer, clip_gradients
from rc2l.evaluation import evaluate_networks
from rc2l.modeling.projection import TrainingNetwork, build_projection
from rc2l.modeling.weights import load_weights
from rc2l.semi.adversary import Adversary
from rc2l.semi.methods import Method
from rc2l.semi.pseudo_label import PseudoLabels, drop_small_regions, pseudo_labels
from rc2l.semi.teacher import Teacher
from rc2l.visualization.relations import relation_image

logger = logging.getLogger(__name__)

#: Iterations between two rows of metrics.
LOG_PERIOD = 20


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type that autocast uses, None without AMP.

    Raises:
        ValueError: unknown SOLVER.AMP.DTYPE.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    on_cuda = cfg.MODEL.DEVICE.startswith("cuda")
    choices = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    choices["auto"] = torch.bfloat16 if not on_cuda or torch.cuda.is_bf16_supported() else torch.float16
    if cfg.SOLVER.AMP.DTYPE not in choices:
        raise ValueError(f"unknown SOLVER.AMP.DTYPE '{cfg.SOLVER.AMP.DTYPE}': it must be one of {', '.join(choices)}")
    return choices[cfg.SOLVER.AMP.DTYPE]


class SemiSupervisedTrainer(TrainerBase):
    """Student-teacher training on a labelled and an unlabelled stream (RC²L section 3.1).

    Every random number of a step is drawn from (seed, iteration, process), so the state of a run is the networks, the
    optimizer, the scheduler, the iteration and the best score.

    Args:
        cfg: the full config.
        split: labelled and unlabelled images.
    """

    def __init__(self, cfg: CfgNode, split: Split) -> None:
        super().__init__()
        self.cfg = cfg
        self.split = split
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.method = Method(cfg)
        torch.manual_seed(self.seed)  # the same initial weights in every process
        self.student = build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            load_weights(self.student, cfg.MODEL.WEIGHTS, cfg=cfg)
        teacher = cfg.SEMI.TEACHER
        self.teacher = Teacher(self.student, teacher.DECAY, cfg.SEMI.BURN_IN, teacher.AVERAGE_BUFFERS)
        self.projection = build_projection(cfg, self.student)
        self.adversary = Adversary(cfg) if self.method.name == "s4gan" else None
        trained = [self.student] + ([self.projection] if self.projection else [])
        self.optimizer = build_optimizer(cfg, *trained)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.amp_dtype = amp_dtype(cfg)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.parameters = [p for network in trained for p in network.parameters() if p.requires_grad]
        self.class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
        self.checkpointer = RunCheckpointer(
            self.student,
            cfg.OUTPUT_DIR,
            save_to_disk=comm.is_main_process(),
            teacher=self.teacher.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            trainer=self,
            **({"projection": self.projection} if self.projection else {}),
            **({"adversary": self.adversary} if self.adversary else {}),
        )
        self.model = TrainingNetwork(self.student, self.projection) if self.projection else self.student
        if comm.get_world_size() > 1:
            device_ids = [self.device.index or torch.cuda.current_device()] if self.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=device_ids)
        self.model.train()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: dict[str, float] = {}
        self.best: float = -math.inf
        self.register_hooks(self._build_hooks())

    def _build_hooks(self) -> list[hooks.HookBase | None]:
        on_main = comm.is_main_process()
        solver = self.cfg.SOLVER
        kept = solver.CHECKPOINTS_KEPT or None
        checkpointer = hooks.PeriodicCheckpointer(self.checkpointer, solver.CHECKPOINT_PERIOD, max_to_keep=kept)
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            checkpointer if on_main else None,
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate),
            hooks.PeriodicWriter(default_writers(self.cfg.OUTPUT_DIR, self.max_iter), LOG_PERIOD) if on_main else None,
        ]

    def state_dict(self) -> dict:
        # After the last step detectron2's counter stands one further.
        return {"iteration": min(self.iter, self.max_iter - 1), "seed": self.seed, "best": self.best}

    def load_state_dict(self, state_dict: dict) -> None:
        self.start_iter = state_dict["iteration"] + 1
        self.seed = state_dict["seed"]
        self.best = state_dict["best"]

    def resume(self) -> None:
        """Continue from the newest checkpoint in OUTPUT_DIR, if there is one."""
        if not self.checkpointer.resume():
            logger.warning(f"--resume: no checkpoint in {self.cfg.OUTPUT_DIR}, starting from iteration 0")

    def train(self) -> dict[str, float]:
        """Train up to SOLVER.MAX_ITER; returns the scores of the last evaluation."""
        loader = build_train_loader(self.cfg, self.split, self.start_iter, seed=self.seed)
        self._batches = iter(loader)
        super().train(self.start_iter, self.max_iter)
        return self.results

    def evaluate(self) -> dict[str, float]:
        """Scores of teacher and student on the test sets, by name; the best teacher so far becomes model_best.pth."""
        networks = {"teacher": self.teacher.model, "student": self.student}
        broadcast_buffers(*networks.values())
        self.results = evaluate_networks(self.cfg, networks, build_test_loader)
        self._draw_relations()
        score = next(value for name, value in self.results.items() if name.endswith("teacher/mIoU"))
        if score > self.best:
            self.best = score
            self.checkpointer.save("model_best", tag=False)
        logger.info(f"teacher mIoU {score:.2f} now, {self.best:.2f} at best (model_best.pth)")
        return self.results

    def _draw_relations(self) -> None:
        """The relation graph of the last mini-batch, for TensorBoard."""
        if self.method.reco is None or self.method.reco.last is None or not comm.is_main_process():
            return
        last = self.method.reco.last
        pair = last.present[:, None] & last.present
        relations = torch.where(pair, last.relations, float("nan")).cpu().numpy()
        image = relation_image(relations, self.class_names, f"class relations, iteration {self.iter}")
        self.storage.put_image("reco/class_relations", image.transpose(2, 0, 1))

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - start
        torch.manual_seed(int(self._generator("network").integers(2**63)))
        try:
            metrics = self.step(batch.to(self.device), self.iter)
            if (self.iter + 1) % LOG_PERIOD == 0 or self.iter + 1 == self.max_iter:
                self._write(metrics(), data_time)
        except FloatingPointError as error:
            files = ", ".join(batch.labeled_files + batch.unlabeled_files)
            raise FloatingPointError(f"iteration {self.iter}: {error}. Images of this step: {files}") from error

    def step(self, batch: TrainingBatch, iteration: int) -> Callable[[], dict[str, Tensor]]:
        """One training step; returns a function that computes its metrics, called only when they are logged."""
        pseudo = None
        images = batch.labeled_images
        if self.method.semi_supervised and iteration >= self.cfg.SEMI.BURN_IN:
            pseudo = self.label(batch)
            strong_images, pseudo_targets, pseudo_confidence = self.mix(batch, pseudo)
            images = torch.cat([images, strong_images])

        with self._autocast():
            output = self.model(images)
        output = output.float()
        num_labeled = len(batch.labeled_images)
        losses = self.method.losses(
            output[:num_labeled],
            batch.labeled_targets,
            output[num_labeled:] if pseudo else None,
            pseudo_targets if pseudo else None,
            average_over_processes,
            pseudo_confidence if pseudo else None,
        )
        if self.adversary and pseudo:
            normalized = self.student.normalize(images)
            losses |= self.adversary.losses(
                normalized[:num_labeled],
                output[:num_labeled],
                batch.labeled_targets,
                normalized[num_labeled:],
                output[num_labeled:],
                average_over_processes,
            )
        total = sum(losses.values())

        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.cfg, self.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.adversary:
            group = self.optimizer.param_groups[0]
            self.adversary.update(group["lr"] / group["initial_lr"], average_over_processes)
        decay = self.teacher.update(self.student, iteration)

        def metrics() -> dict[str, Tensor]:
            values = {"total_loss": total, **losses, "teacher/decay": total.new_tensor(decay)}
            values |= self.method.watched(self.class_names) | (self.adversary.watched if self.adversary else {})
            if pseudo:
                values |= pseudo_label_metrics(pseudo, pseudo_targets, self.class_names)
            return values

        return metrics

    @torch.no_grad()
    def label(self, batch: TrainingBatch) -> PseudoLabels:
        """The teacher's pseudo labels of the weak views."""
        with self._autocast():
            output = self.teacher.model(batch.unlabeled_images, auxiliary=False)
        return pseudo_labels(output.float(), batch.unlabeled_valid, self.cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE)

    @torch.no_grad()
    def mix(self, batch: TrainingBatch, pseudo: PseudoLabels) -> tuple[Tensor, Tensor, Tensor]:
        """The strong views (B_u, 3, H, W), what the student must predict on them (B_u, H, W), and the confidences."""
        mixing, generator = self.cfg.SEMI.MIXING, self._generator("mixing")
        B, H, W = pseudo.label_map.shape
        if mixing.BOX == "half":
            boxes = half_area_boxes(B, H, W, generator)
        else:
            boxes = cutmix_boxes(B, H, W, mixing.AREA, mixing.ASPECT_RATIO, generator)
        images, label_map, confidence = mix_views(
            mixing.NAME,
            batch.strong_images,
            pseudo.label_map,
            pseudo.confidence,
            num_classes=self.method.num_classes,
            fill=self.cfg.MODEL.PIXEL_MEAN,
            boxes=boxes,
            generator=generator,
        )
        min_area = self.cfg.SEMI.PSEUDO_LABEL.MIN_AREA
        return images, drop_small_regions(label_map, min_area, self.method.num_classes), confidence

    def _generator(self, purpose: str) -> np.random.Generator:
        """Random numbers of this iteration and process, for one purpose."""
        return np.random.default_rng([self.seed, self.iter, comm.get_rank(), *purpose.encode()])

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _write(self, metrics: dict[str, Tensor], data_time: float) -> None:
        values = write_metrics(self.storage, metrics, data_time)
        bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"not finite: {', '.join(bad)}")
