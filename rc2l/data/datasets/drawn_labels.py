"""Label maps that are drawn once from annotations, and read from files from then on."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from rc2l.data.errors import DatasetError
from rc2l.data.scratch import scratch_folder


def write_label_folder(folder: Path, labels: Iterator[tuple[str, np.ndarray]]) -> None:
    """Write label maps as PNG files to ``folder``, which takes its name when all are there.

    Args:
        folder: what is to be there at the end.
        labels: (path below the folder, (H, W) uint8).

    Raises:
        DatasetError: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(folder))
        except OSError as error:
            raise DatasetError(
                f"{folder}: cannot write the labels here ({error.strerror}); name a folder for them in 'label_cache'"
            ) from error
        for name, label in labels:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label).save(scratch / name)
        try:
            os.rename(scratch, folder)
        except OSError:
            # Another process of the same run was faster; what it wrote is the same.
            if not folder.is_dir():
                raise
