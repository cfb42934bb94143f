"""The teacher: an exponential moving average of the student (RC²L eq. 4, Mean Teacher)."""

import copy
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import nn

from rc2l.modeling.segmentor import Segmentor
from rc2l.ranges import declare, number
from rc2l.semi.labeler import STUDENT, Labeler

#: What tau may be.
DECAY = number(at_least=0, below=1)
declare("SEMI", {"TEACHER.DECAY": DECAY})


def ema_decay(step: int, tau: float) -> float:
    """min(1 - 1/(step + 1), tau): the first update, step 0, copies the student."""
    return min(1 - 1 / (step + 1), tau)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, average_buffers: bool = False) -> None:
    """theta_t = decay * theta_t + (1 - decay) * theta_s for all parameters, in place (RC²L eq. 4).

    Buffers (batch-norm statistics) are copied; with ``average_buffers`` the floating-point ones are averaged.
    """
    averaged = [list(teacher.parameters()), list(student.parameters())]
    copied = [[], []]
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        pair = averaged if average_buffers and mine.is_floating_point() else copied
        pair[0].append(mine)
        pair[1].append(theirs)
    torch._foreach_lerp_(averaged[0], averaged[1], 1 - decay)
    if copied[0]:
        torch._foreach_copy_(copied[0], copied[1])


class Teacher:
    """The moving average of a student: always in eval mode, never with gradient.

    Args:
        student: the network to follow (not wrapped for distributed training); copied at once.
        tau: decay in [0, 1).
        burn_in: iterations at whose end the teacher restarts as a copy of the student.
        average_buffers: see :func:`ema_update`.
    """

    def __init__(self, student: nn.Module, tau: float, burn_in: int = 0, average_buffers: bool = False) -> None:
        DECAY.check("SEMI.TEACHER.DECAY", tau)
        self.tau = tau
        self.restart = max(burn_in - 1, 0)
        self.average_buffers = average_buffers
        self.model = copy.deepcopy(student).eval().requires_grad_(False)

    def update(self, student: nn.Module, iteration: int) -> float:
        """Follow the student after its step of ``iteration``, counted from 0; returns the decay used."""
        step = iteration - self.restart if iteration >= self.restart else iteration
        decay = ema_decay(step, self.tau)
        ema_update(self.model, student, decay, self.average_buffers)
        return decay


class EmaTeacher(Labeler):
    """A student and its moving average, which labels and is the result (Mean Teacher, RC²L section 3.1)."""

    def __init__(self, cfg: CfgNode, build: Callable[[], Segmentor]) -> None:
        super().__init__(cfg, build)
        options = cfg.SEMI.TEACHER
        student = self.students[STUDENT]
        self.teacher = Teacher(student, options.DECAY, cfg.SEMI.BURN_IN, options.AVERAGE_BUFFERS)

    @property
    def networks(self) -> dict[str, Segmentor]:
        return {"teacher": self.teacher.model, **self.students}

    def labels_for(self, student: str) -> Segmentor:
        return self.teacher.model

    def after_step(self, iteration: int) -> dict[str, float]:
        return {"teacher/decay": self.teacher.update(self.students[STUDENT], iteration)}
