"""The order of one training step, and the hooks around it. It knows no method by name, and nothing about maths."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import TrainerBase, hooks
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rc2l.engine.trackers  # noqa: F401  registers them
from rc2l.collectives import average_over_processes, broadcast_buffers, from_next_process, gather_over_processes
from rc2l.data.errors import DatasetError
from rc2l.data.loader import build_test_loader, build_train_loader
from rc2l.data.splits import Split, hidden_labels
from rc2l.engine.checkpoint import RunCheckpointer
from rc2l.engine.divergence import CollapseWatch, FiniteGuard, not_finite, write_dump
from rc2l.engine.entry_point import message_of
from rc2l.engine.evaluation_hook import EvaluationHook
from rc2l.engine.history import MetricHistory
from rc2l.engine.monitor import pseudo_label_metrics, write_metrics
from rc2l.engine.optimizer import amp_dtype, build_optimizer, clip_gradients
from rc2l.engine.pictures import PictureHook, TrainingPictures
from rc2l.engine.progress import ProgressBar
from rc2l.engine.resume import RunRecord, keep_schedule, settings
from rc2l.engine.signals import Agreement, StopHook, StopRequest
from rc2l.engine.tracking import Tracking
from rc2l.evaluation import evaluate_networks
from rc2l.evaluation.pseudo_labels import measure_pseudo_labels, summary
from rc2l.modeling.feature_dropout import FeatureDropout
from rc2l.modeling.segmentor import Segmentor
from rc2l.modeling.training_network import TrainingNetwork
from rc2l.modeling.weight_sources import initial_weights
from rc2l.modeling.weights import load_weights
from rc2l.semi.labeler import STUDENT
from rc2l.semi.learner import Learner
from rc2l.semi.method import method_of
from rc2l.semi.pseudo_label import pseudo_labels
from rc2l.semi.step import Step
from rc2l.semi.views import strong_view, weak_view
from rc2l.structures.training_batch import TrainingBatch
from rc2l.structures.views import PseudoLabels, View

logger = logging.getLogger(__name__)

#: Iterations between two rows of metrics.
LOG_PERIOD = 20


class SemiSupervisedTrainer(TrainerBase):
    """Student-teacher training on a labelled and an unlabelled stream (RC²L section 3.1).

    Every random number of a step is drawn from (seed, iteration, process), those of mixing from (seed, iteration,
    position of the image in the step's unlabelled batch), so the state of a run is the networks, the optimiser, the
    scheduler, the objectives' own, the iteration, the best score and the metrics that are not yet in the files. The
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
        self.class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
        self.method = method_of(cfg)
        self.labeler = self.method.labeler(cfg, self._build_network)
        students = self.labeler.students
        self.learners = {
            name: Learner(cfg, self.method, student, self.class_names) for name, student in students.items()
        }
        trained = [module for learner in self.learners.values() for module in learner.trained]
        self.optimizer = build_optimizer(cfg, *trained)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.amp_dtype = amp_dtype(cfg)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        self.parameters = [p for network in trained for p in network.parameters() if p.requires_grad]
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
        heads = {name: learner.heads for name, learner in self.learners.items()}
        self.model: nn.Module = TrainingNetwork(students, heads)
        if self.world_size > 1:
            device_ids = [self.device.index or torch.cuda.current_device()] if self.device.type == "cuda" else None
            # Buffers are shared after the forward instead (see step), where the teacher and checkpoints take them.
            self.model = DistributedDataParallel(self.model, device_ids=device_ids, broadcast_buffers=False)
        self.model.train()
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.results: dict[str, float] = {}
        self.stop_agreed = False
        self._guard = FiniteGuard(
            nn.ModuleList(students.values()), cfg.SOLVER.MAX_SKIPPED_STEPS if self.scaler.is_enabled() else 0
        )
        #: What this process's last image was mixed with in this step: first tensors of the next process, by view.
        self.following: list[list[Tensor]] = []
        self.stop_request = StopRequest()
        self._agreement = Agreement()
        collapse = cfg.SEMI.COLLAPSE
        self._collapse = CollapseWatch(collapse.MAX_CLASS_SHARE, collapse.MIN_KEPT_SHARE, collapse.PATIENCE)
        self._tracking = Tracking(cfg) if cfg.TRACKER.NAME and comm.is_main_process() else None
        writers = [self._tracking] if self._tracking else []
        self._history = MetricHistory(cfg.OUTPUT_DIR, LOG_PERIOD, writers) if comm.is_main_process() else None
        self.evaluation = EvaluationHook(
            cfg.TEST.EVAL_PERIOD, self.evaluate, self.checkpointer, result=next(iter(self.labeler.networks))
        )
        self._pictures = self._build_pictures()
        self.register_hooks(self._build_hooks())

    def _build_network(self) -> Segmentor:
        network = build_model(self.cfg)
        if weights := initial_weights(self.cfg):
            load_weights(network, weights, cfg=self.cfg)
        return network

    def _build_pictures(self) -> PictureHook | None:
        if not self.cfg.VIS_PERIOD or not comm.is_main_process():
            return None
        pictures = TrainingPictures(self.cfg, self.split, self.method.needs, self.labeler, self._autocast, self.seed)
        show = self._tracking.picture if self._tracking else lambda name, picture, iteration: None
        return PictureHook(self.cfg.VIS_PERIOD, pictures.draw, self.cfg.OUTPUT_DIR, show)

    def _build_hooks(self) -> list[hooks.HookBase | None]:
        on_main = comm.is_main_process()
        checkpointer = hooks.PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD)
        # The checkpoint comes before the evaluation, whose failure then costs no step; a resumed run makes up for it.
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(self.optimizer, self.scheduler),
            checkpointer if on_main else None,
            self.evaluation,
            self._pictures,
            self._history,
            ProgressBar(LOG_PERIOD, self.evaluation.result) if on_main and ProgressBar.fits() else None,
            StopHook(),
        ]

    def state_dict(self) -> dict:
        # After the last step detectron2's counter stands one further.
        return {
            "iteration": min(self.iter, self.max_iter - 1),
            "seed": self.seed,
            "networks": list(self.labeler.networks),
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

    def start_tracking(self) -> None:
        """Tell the tracker, if there is one, that the run begins or goes on.

        Raises:
            ValueError: it cannot be started.
        """
        if self._tracking:
            self._tracking.start(settings(self.cfg))

    def train(self) -> dict[str, float]:
        """Train up to SOLVER.MAX_ITER; returns the scores of the last evaluation."""
        self._loader = build_train_loader(self.cfg, self.split, self.start_iter, self.seed, self.method.needs)
        self._batches = iter(self._loader)
        try:
            with self._tracking or nullcontext(), self.stop_request:
                if self.start_iter < self.max_iter:
                    self._load_batch()
                    if failures := [failure for failure in comm.all_gather(self.stop_request.failure) if failure]:
                        raise failures[0]
                super().train(self.start_iter, self.max_iter)
        finally:
            # Left to the garbage collector, the loader's workers are waited for in vain, 5 s each.
            del self._batches, self._loader
        return self.results

    def before_train(self) -> None:
        super().before_train()
        self.evaluation.catch_up()
        if self._pictures:
            self._pictures.catch_up()
        if self._history:
            self._history.catch_up()

    def after_train(self) -> None:
        # Resumed after its last step, the run has none left, and detectron2's counter would stand one too far.
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def evaluate(self) -> dict[str, float]:
        """Scores of every network on the test sets, by name."""
        broadcast_buffers(*self.labeler.networks.values())
        self.results = evaluate_networks(self.cfg, self.labeler.networks, build_test_loader)
        if comm.is_main_process():
            for name, learner in self.learners.items():
                for picture_name, picture in learner.pictures(self.iter).items():
                    self.storage.put_image(_name_of(name, picture_name), picture)
        return self.results | self._pseudo_label_scores()

    def _pseudo_label_scores(self) -> dict[str, float]:
        """How good the pseudo labels of a fixed sample of the unlabelled images are, where their labels are known."""
        if not self.method.needs.unlabeled:
            return {}
        scores, records = {}, self._hidden_labels[self.rank :: self.world_size]
        for name, learner in self.learners.items():
            labeler = self.labeler.labels_for(name)
            each = measure_pseudo_labels(self.cfg, self.class_names, labeler, learner.network, records)
            if each:
                logger.info(f"{_name_of(name, 'pseudo labels')} of {len(self._hidden_labels)} images: {summary(each)}")
            scores |= {_name_of(name, key): value for key, value in each.items()}
        return scores

    @cached_property
    def _hidden_labels(self) -> list[dict]:
        test = self.cfg.TEST
        most = min(test.PSEUDO_LABEL_IMAGES, test.MAX_IMAGES or test.PSEUDO_LABEL_IMAGES)
        return hidden_labels(self.cfg, self.split, most)

    def _load_batch(self) -> None:
        """Wait for the batch of the next step; what goes wrong with it is a reason to stop before that step."""
        start = time.perf_counter()
        try:
            self._batch = next(self._batches)
            self.stop_request.failure = self._loader.death
        except DatasetError as error:  # a file that was whole when the run began
            self.stop_request.failure = DatasetError(message_of(error))
        self._data_time = time.perf_counter() - start

    def run_step(self) -> None:
        batch, data_time = self._batch, self._data_time
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
        if self.iter + 1 < self.max_iter:
            self._load_batch()
        (self.stop_agreed,) = self._agreement.any(self.stop_request.wanted)

    def step(self, batch: TrainingBatch, iteration: int) -> Callable[[], dict[str, Tensor]] | None:
        """One training step; returns a function that computes its metrics, called only when they are logged.

        None where the step was skipped (SOLVER.MAX_SKIPPED_STEPS).

        Raises:
            FloatingPointError: a loss or a gradient is not finite; weights and optimiser are as before the step.
        """
        self._guard.begin()
        self.following = []
        labeled = self.method.needs.unlabeled and iteration >= self.cfg.SEMI.BURN_IN
        pseudo = self.label(batch) if labeled else {}
        steps = self.forward(batch, pseudo, iteration)
        losses = {
            _name_of(name, key): value
            for name, step in steps.items()
            for key, value in self.learners[name].losses(step).items()
        }
        total = sum(losses.values())
        norm = self._update_weights(total, losses, iteration)
        if norm is None:
            return None
        for name, step in steps.items():
            self.learners[name].after_step(step)
        followed = self.labeler.after_step(iteration)

        def metrics() -> dict[str, Tensor]:
            values = {"total_loss": total, **losses, "gradient_norm": norm}
            values |= {name: total.new_tensor(value) for name, value in followed.items()}
            for name, step in steps.items():
                watched = {}
                if step.views:
                    watched = pseudo_label_metrics(pseudo[name], step.views[0].targets, self.class_names)
                watched |= self.learners[name].metrics()
                values |= {_name_of(name, key): value for key, value in watched.items()}
            return values

        return metrics

    def forward(self, batch: TrainingBatch, pseudo: dict[str, PseudoLabels], iteration: int) -> dict[str, Step]:
        """One forward pass of all students on all their images; what each student's objectives then work with."""
        needs = self.method.needs
        weak = {name: weak_view(batch.unlabeled_images, batch.unlabeled_valid, each) for name, each in pseudo.items()}
        views = {name: [self.mix(batch, each, v) for v in range(needs.strong_views)] for name, each in pseudo.items()}
        images, num_labeled, num_unlabeled = {}, len(batch.labeled_images), len(batch.unlabeled_images)
        for name in self.learners:
            images[name] = [batch.labeled_images, *(view.images for view in views.get(name, []))]
            if needs.perturbed and pseudo:
                images[name].append(weak[name].images)
        perturb = None
        if needs.perturbed and pseudo:
            perturb = FeatureDropout(num_labeled + needs.strong_views * num_unlabeled, dropped=num_unlabeled)
        elif needs.complementary and pseudo:
            perturb = FeatureDropout(num_labeled, paired=num_unlabeled)
        with self._autocast():
            joined = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in images.items()}
            outputs = self.model(joined, perturb)

        group = self.optimizer.param_groups[0]
        steps = {}
        for name, learner in self.learners.items():
            output = outputs[name].float()
            strong = [
                output[num_labeled + v * num_unlabeled : num_labeled + (v + 1) * num_unlabeled]
                for v in range(len(views.get(name, [])))
            ]
            steps[name] = Step(
                batch=batch,
                labeled=output[:num_labeled],
                views=views.get(name, []),
                strong=strong,
                weak=weak.get(name),
                perturbed=output[-num_unlabeled:] if needs.perturbed and pseudo else None,
                iteration=iteration,
                progress=iteration / self.max_iter,
                schedule=group["lr"] / (group["initial_lr"] or 1),
                matching=learner.matching,
                match_views=needs.matches,
                average=average_over_processes,
                gather=gather_over_processes,
            )
        return steps

    def _update_weights(self, total: Tensor, losses: dict[str, Tensor], iteration: int) -> Tensor | None:
        """Backward pass and optimizer step; returns the norm of all gradients before they were clipped (0-d).

        None if the step is skipped, which leaves everything as it was.

        Raises:
            FloatingPointError: see :meth:`step`.
        """
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        broadcast_buffers(*self.labeler.students.values())
        norm = clip_gradients(self.cfg, self.parameters)
        # Under fp16 the scaler looks after gradients: it skips the update and lowers its scale.
        checked = {"total_loss": total, **losses} | ({} if self.scaler.is_enabled() else {"gradient_norm": norm})
        bad = not_finite(checked)
        (diverged,) = self._agreement.any(bool(bad))
        if diverged:
            self.optimizer.zero_grad()
            if self._guard.skip(iteration):
                self.scaler.update()
                return None
            more = "" if not_finite(losses) else " (the losses of this process are finite)"
            raise FloatingPointError(f"not finite: {', '.join(bad) or 'a loss of another process'}{more}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _dump(self, batch: TrainingBatch, error: str) -> str:
        step = {"iteration": self.iter, "seed": self.seed, "rank": self.rank, "world_size": self.world_size}
        states = {name: part.state_dict() for name, part in self.parts_of_a_step().items()}
        step |= {"error": error, "following": self.following}
        return write_dump(self.cfg.OUTPUT_DIR, self.cfg, step, batch, states)

    def parts_of_a_step(self) -> dict[str, object]:
        """What a step computes with, by the names that checkpoints and dumps give it; each has a state dict."""
        parts: dict[str, object] = {"scaler": self.scaler}
        for name, network in self.labeler.networks.items():
            parts["model" if name == STUDENT else name] = network
        for name, learner in self.learners.items():
            prefix = "" if name == STUDENT else f"{name}_"
            parts[f"{prefix}objectives"] = learner
            if learner.heads:
                parts[f"{prefix}projection"] = learner.heads
        return parts

    @torch.no_grad()
    def label(self, batch: TrainingBatch) -> dict[str, PseudoLabels]:
        """The pseudo labels of the weak views for each student, from whoever labels for it."""
        minimum, entropy = self.cfg.SEMI.PSEUDO_LABEL.MIN_CONFIDENCE, self.method.needs.entropy
        labels: dict[str, PseudoLabels] = {}
        for name in self.learners:
            network = self.labeler.labels_for(name)
            training = network.training
            network.eval()
            with self._autocast():
                output = network(batch.unlabeled_images, auxiliary=False)
            network.train(training)
            labels[name] = pseudo_labels(output.float(), batch.unlabeled_valid, minimum, with_entropy=entropy)
        return labels

    def mix(self, batch: TrainingBatch, pseudo: PseudoLabels, number: int) -> View:
        """One of the strong views of the unlabelled images, mixed as one batch over all processes."""
        images = batch.strong_images[number]
        first = self.rank * len(images)  # position in the step's batch
        purpose = f"mixing{number or ''}"
        generators = [self._generator(purpose, first + i) for i in range(len(images))]
        return strong_view(self.cfg, images, batch.unlabeled_valid, pseudo, generators, self.exchange)

    def exchange(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the next process's first image, for this process's own."""
        self.following.append(from_next_process(tensors))
        return self.following[-1]

    def seed_step(self) -> None:
        """Set torch's generator, which dropout draws from, to the start of this iteration."""
        torch.manual_seed(int(self._generator("network", self.rank).integers(2**63)))

    def _generator(self, purpose: str, number: int) -> np.random.Generator:
        """Random numbers of this iteration and a process or position, for one purpose."""
        return np.random.default_rng([self.seed, self.iter, number, *purpose.encode()])

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)


def _name_of(student: str, name: str) -> str:
    """Of a loss or number in the metrics: the one student's stand alone, those of others behind their name."""
    return name if student == STUDENT else f"{student}/{name}"
