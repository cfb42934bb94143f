"""All the state of a run in one file, written so that no reader ever sees half of it."""

import os
from pathlib import Path
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer


class RunCheckpointer(Checkpointer):
    """fvcore's checkpointer with atomic writes, safe reads, and a resume that must fit exactly.

    The file holds ``model`` (the student's state dict) and one entry for each checkpointable: ``teacher``,
    ``optimizer``, ``scheduler``, ``scaler``, ``trainer`` (iteration and seed).
    """

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Write ``<name>.pth`` to a temporary file, flush it to disk, rename it.

        Args:
            name: of the file, without suffix.
            tag: make it the one that a resumed run continues from.
            kwargs: more to save.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state |= {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file:
            torch.save(state | kwargs, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        self.logger.info(f"Saved checkpoint {path}")
        if tag:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = Path(self.save_dir) / "last_checkpoint"
        scratch = path.with_suffix(".tmp")
        scratch.write_text(last_filename_basename)
        os.replace(scratch, path)

    def resume(self) -> bool:
        """Load the newest checkpoint of the folder into everything; False if there is none.

        Raises:
            ValueError: the checkpoint belongs to another model, or lacks a part of the state.
        """
        if not self.has_checkpoint():
            return False
        path = self.get_checkpoint_file()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = [key for key in ("model", *self.checkpointables) if key not in checkpoint]
        if missing:
            raise ValueError(f"{path} cannot be resumed from: it lacks {', '.join(missing)}")
        try:
            self.model.load_state_dict(checkpoint["model"])
            for key, checkpointable in self.checkpointables.items():
                checkpointable.load_state_dict(checkpoint[key])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} does not fit the model and solver of this config (was the config changed since?): {error}"
            ) from error
        self.logger.info(f"Resuming from {path}")
        return True
