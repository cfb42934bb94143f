"""All the state of a run in one file, which checkpoints of a folder are kept, and which one a run resumes from."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from rc2l.engine.checkpoint_file import DamagedCheckpointError, read_checkpoint, write_checkpoint, write_text

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")

logger = logging.getLogger(__name__)


class RunCheckpointer(Checkpointer):
    """fvcore's checkpointer with atomic writes, safe reads, and a resume that must fit exactly.

    The file holds ``model`` (the student's state dict) and one entry for each checkpointable: ``teacher`` or what else
    the method's networks are called, ``optimizer``, ``scheduler``, ``scaler``, ``trainer`` (iteration, seed, names of
    the networks, best score, metric history), ``objectives`` (the state of each, by its name), and ``projection``, the
    heads of objectives, where there are any.

    Args:
        model: the student.
        save_dir: OUTPUT_DIR.
        kept: how many numbered checkpoints stay, at least 0; 0: all. model_final.pth and model_best.pth always stay.
        save_to_disk: only the main process writes.
        checkpointables: see fvcore.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, *, kept: int = 0, save_to_disk: bool = True, **checkpointables: Any
    ) -> None:
        if kept < 0:
            raise ValueError(f"SOLVER.CHECKPOINTS_KEPT is {kept}: it must be 0 (keep all) or more")
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.kept = kept
        #: Called with path and content before anything is loaded; raises ValueError where the run cannot go on.
        self.examine: Callable[[Path, dict[str, Any]], None] | None = None
        #: Name of the file written last, without suffix.
        self.newest = ""

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``<name>.pth``; only then is it named in ``last_checkpoint``, and only then are older ones deleted.

        Args:
            name: of the file, without suffix.
            tag: make it the one that a resumed run continues from.
            kwargs: more to save.

        Raises:
            CheckpointError: it cannot be written; older files are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state |= {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        write_checkpoint(state | kwargs, path)
        self.logger.info(f"Saved checkpoint {path}")
        if tag:
            self.tag_last_checkpoint(path.name)
            self.newest = name
            self._prune(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def _prune(self, newest: Path) -> None:
        """Delete all but the last ``kept`` up to ``newest``, from the folder itself: a restart forgets nothing."""
        match = _NUMBERED.fullmatch(newest.name)
        if match and self.kept:
            numbered = numbered_checkpoints(newest.parent)
            for iteration in sorted(i for i in numbered if i <= int(match[1]))[: -self.kept]:
                numbered[iteration].unlink(missing_ok=True)

    def resume(self) -> bool:
        """Load the newest whole checkpoint of the folder into everything; False if there is none.

        A damaged one is passed over with a warning, and the one before it is taken. All processes must call it.

        Raises:
            ValueError: every checkpoint is damaged; or the one found belongs to another model, or lacks a part of the
                state.
        """
        chosen, content, failure = None, None, ""
        if comm.is_main_process():
            remove_scratch(Path(self.save_dir))
            chosen, content, failure = newest_whole_checkpoint(Path(self.save_dir))
        chosen, failure = comm.all_gather((chosen, failure))[0]
        if failure:
            raise ValueError(failure)
        if chosen is None:
            return False
        content = content or read_checkpoint(chosen, verify=False)
        self._load(chosen, content)
        self.logger.info(f"Resuming from {chosen}")
        return True

    def _load(self, path: Path, content: dict[str, Any]) -> None:
        if self.examine:
            self.examine(path, content)
        content = with_objectives(content)
        missing = [key for key in ("model", *self.checkpointables) if key not in content]
        if missing:
            raise ValueError(f"{path} cannot be resumed from: it lacks {', '.join(missing)}")
        try:
            self.model.load_state_dict(content["model"])
            for key, checkpointable in self.checkpointables.items():
                if content[key] or key != "scaler":  # empty without fp16, which may begin here
                    checkpointable.load_state_dict(content[key])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            details = " ".join(str(error).split())
            raise ValueError(
                f"{path} does not fit the model and solver of this config (was the config changed since?): "
                f"{details[:400]}{'...' if len(details) > 400 else ''}"
            ) from error


def with_objectives(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint or dump in which the state of the objectives is one entry; files of before had one for each."""
    if "objectives" in content:
        return content
    old = {"dgcl": "memory_bank", "reco": "reco_bank", "s4gan": "adversary"}
    return content | {"objectives": {name: content[entry] for name, entry in old.items() if entry in content}}


def numbered_checkpoints(folder: Path) -> dict[int, Path]:
    """Iteration -> periodic checkpoint, in no particular order."""
    found = {path: _NUMBERED.fullmatch(path.name) for path in folder.glob("model_*.pth")}
    return {int(match[1]): path for path, match in found.items() if match}


def newest_whole_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any] | None, str]:
    """The checkpoint to go on from and its content, or why there is none although there was a run.

    Changes nothing in the folder, and reads nothing outside of it.
    """
    problems = []
    for path in resume_candidates(folder):
        try:
            content = read_checkpoint(path)
        except DamagedCheckpointError as error:
            problems.append(str(error))
            logger.warning(f"{error}; trying the checkpoint before it")
            continue
        if problems:
            logger.warning(f"continuing from {path.name} instead; the steps after it are done again")
        return path, content, ""
    if problems:
        return None, None, f"--resume: no checkpoint in {folder} can be read: {'; '.join(problems)}"
    return None, None, ""


def resume_candidates(folder: Path) -> list[Path]:
    """Files to resume from, the best first.

    That is the one in ``last_checkpoint``, then those before it; without that file, all from the newest on.
    model_best.pth, which is as complete as any, comes last.
    """
    numbered = numbered_checkpoints(folder)
    newest_first = [numbered[iteration] for iteration in sorted(numbered, reverse=True)]
    final, best = folder / "model_final.pth", [folder / "model_best.pth"]
    if final.exists():
        newest_first.insert(0, final)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        # The name alone: a pointer to another folder was not written by us.
        target = folder / (Path(pointer.read_text(errors="replace").strip("\0 \n")).name or "no name")
        if target in newest_first:
            newest_first = newest_first[newest_first.index(target) :]
        else:  # missing: there was a checkpoint once, so the run must not begin anew
            newest_first.insert(0, target)
    return newest_first + [path for path in best if path.exists() and path not in newest_first]


def remove_scratch(folder: Path) -> None:
    """Delete what a killed process had begun to write."""
    for path in (*folder.glob("*.pth.tmp"), folder / "last_checkpoint.tmp"):
        path.unlink(missing_ok=True)
