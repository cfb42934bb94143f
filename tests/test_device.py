"""A training step on a GPU that is not there: PyTorch's fake tensors know shapes and devices, and have no values.

So a tensor left on the CPU is an error here, and so is any wait for a value of the device, except where the test puts
something in its place: the matching and the check for finite losses, the two that a step is allowed. What the backward
pass and the kernels do on a real GPU stays untested.
"""

import re
from dataclasses import fields

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rc2l.data.loader import build_train_loader
from rc2l.data.splits import build_split
from rc2l.engine import trainer as trainer_module
from rc2l.engine.config_file import load_config
from rc2l.engine.trainer import SemiSupervisedTrainer
from rc2l.modeling import matcher
from rc2l.semi import teacher
from rc2l.semi.method import method_of
from tests.shared_data import REPO
from tests.test_train_net import TINY, datasets, datasets_folder  # noqa: F401  fixtures

#: Name -> overrides; the config of shapes is the name up to a comma.
METHODS = {
    "supervised": [],
    "consistency": ["SEMI.DEEP_SUPERVISION", True],
    "rc2l": ["RC2L.CONSISTENCY_WEIGHT", 1.0, "SEMI.PSEUDO_LABEL.MIN_AREA", 16],
    "rc2l-reco": ["SEMI.TEACHER.AVERAGE_BUFFERS", True, "RECO.KEY_SETS", "query"],
    "cutout_deeplab": [],
    "classmix-reco_deeplab": ["RECO.QUERIES", "easy", "RECO.KEYS", "random"],
    "s4gan_deeplab": [],
    "rc2l-dgcl": [],
    "cutmix-dgcl_deeplab": ["RECO.ENABLED", True, "RECO.MEMORY_PER_CLASS", 100, "SELF_TRAINING.KEPT_SHARE", [0.8, 1.0]],
    "rc2l, fixmatch": ["SEMI.METHOD", "fixmatch"],
    "cutmix_deeplab, unimatch": ["SEMI.METHOD", "unimatch"],
    "cutmix_deeplab, unimatch 2": ["SEMI.METHOD", "unimatch", "UNIMATCH.VERSION", 2],
}


@pytest.fixture
def fake_cuda(monkeypatch):
    """Within it, "cuda" tensors can be made without a GPU."""

    def match_without_values(self, groups, at_regions=()):
        found = []
        for layers, regions in groups:
            costs = torch.stack([self.cost(logits, masks, regions) for logits, masks in layers])
            torch.cat([costs.flatten(), regions.present().to(costs.dtype).flatten()])
            layer_count, B, _, _ = costs.shape
            first = torch.zeros(B, dtype=torch.int64, device=costs.device)
            pairs = torch.arange(B, device=costs.device), first, first
            found.append(matcher.Matches([pairs] * layer_count, [1] * B))
        return found

    def apply_anew(self, function, recurse=True):
        # Parameters cannot be swapped in place under fake tensors.
        for child in self.children():
            child._apply(function)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
        return self

    monkeypatch.setattr(nn.Module, "_apply", apply_anew)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    monkeypatch.setattr(matcher.HungarianMatcher, "__call__", match_without_values)
    monkeypatch.setattr(trainer_module, "not_finite", lambda values: [])


def fake_trainer(monkeypatch, method: str, overrides: list) -> tuple[SemiSupervisedTrainer, object]:
    """A trainer on "cuda" and a batch on the CPU; within FakeTensorMode."""
    cfg = load_config(
        str(REPO / f"configs/shapes/{method.split(',')[0]}.yaml"), [*TINY, "SEMI.BURN_IN", "0", *map(str, overrides)]
    )
    cfg.MODEL.DEVICE = "cuda"
    split = build_split(cfg)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        batch = next(iter(build_train_loader(cfg, split, 0, seed=0, needs=method_of(cfg).needs)))
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {
        name: torch.empty(value.shape, dtype=value.dtype)
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }
    monkeypatch.setattr(teacher.copy, "deepcopy", lambda _: build_model(cfg))
    trainer = SemiSupervisedTrainer(cfg, split)
    trainer.iter = 0

    def backward(_):  # asks the driver
        for parameter in trainer.parameters:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return trainer, type(batch)(**values | tensors)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_and_its_metrics_stay_on_the_device(method, fake_cuda, monkeypatch):
    with FakeTensorMode():
        trainer, batch = fake_trainer(monkeypatch, method, METHODS[method])
        metrics = trainer.step(batch.to(trainer.device), 0)()
        assert {name for name, value in metrics.items() if value.device.type != "cuda"} == set()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda tensor: tensor.sum().item(), "aten._local_scalar_dense"),
        (lambda tensor: tensor + torch.ones(3), "found two different devices|found at least two devices"),
    ],
)
def test_a_mistake_would_be_seen(mistake, message):
    with FakeTensorMode():
        tensor = torch.empty(3, device="cuda")
        with pytest.raises(Exception) as error:
            mistake(tensor)
    assert re.search(message, f"{type(error.value)} {error.value}")
