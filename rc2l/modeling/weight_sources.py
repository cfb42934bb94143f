"""Where MODEL.WEIGHTS may be: files, addresses, files inside installed packages, and the model hub that timm uses.

Importing this module teaches detectron2's PathManager ``package://``, ``timm://`` and ``hf-hub:``.
"""

import contextlib
import importlib.util
import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class PackageHandler(PathHandler):
    """``package://name/folder/file``: a file inside an installed Python package, none of whose code is run."""

    PREFIX = "package://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name, _, rest = path.removeprefix(self.PREFIX).partition("/")
        parts = PurePosixPath(rest).parts
        if not name.isidentifier() or not parts or ".." in parts:
            raise FileNotFoundError(f"'{path}' is not of the form package://name/folder/file")
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the package {name} is not installed: install {name.replace('_', '-')}")
        folder = Path(next(iter(spec.submodule_search_locations)))
        local = folder.joinpath(*parts)
        if not local.is_file():
            near = local.parent if local.parent.is_dir() else folder
            raise FileNotFoundError(
                f"the package {name} has no file {rest}; {near.relative_to(folder.parent)} holds "
                f"{', '.join(sorted(item.name for item in near.iterdir())[:8])}"
            )
        return str(local)

    def _isfile(self, path: str, **kwargs) -> bool:
        try:
            return os.path.isfile(self._get_local_path(path))
        except FileNotFoundError:
            return False

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode)


class HubHandler(PathHandler):
    """``hf-hub:org/name`` and ``timm://model``: the weight file of a repository of the Hugging Face hub.

    Files are kept in the cache folder of iopath, under org/name, where they may be put by hand too.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return ["hf-hub:", "timm://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        repository, names = hub_files(path)
        folder = hub_folder(repository)
        for name in names:
            if (folder / name).is_file():
                return str(folder / name)
        try:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError
        except ImportError as error:
            raise FileNotFoundError("the package huggingface-hub is not installed; timm brings it") from error
        for name in names:
            try:
                local = hf_hub_download(repository, name, local_dir=folder, etag_timeout=10)
            except EntryNotFoundError:
                continue
            # It only tells the expected input: without it no comparison is made.
            with contextlib.suppress(Exception):
                hf_hub_download(repository, "config.json", local_dir=folder, etag_timeout=10)
            return local
        raise FileNotFoundError(f"the repository {repository} holds none of {', '.join(names)}")

    def _isfile(self, path: str, **kwargs) -> bool:
        return True

    def _exists(self, path: str, **kwargs) -> bool:
        return True

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode)


def hub_files(path: str) -> tuple[str, tuple[str, ...]]:
    """(repository, file names to try) of ``hf-hub:org/name`` or ``timm://model``.

    Raises:
        FileNotFoundError: timm knows no weights of this name.
    """
    if path.startswith("hf-hub:"):
        return path.removeprefix("hf-hub:").strip("/"), _HUB_FILES
    from rc2l.modeling.timm_backbone import import_timm

    import_timm()
    from timm.models import get_pretrained_cfg, list_pretrained

    name = path.removeprefix("timm://")
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model does not have
        config = None
    if config is None or not config.hf_hub_id:
        import difflib

        close = difflib.get_close_matches(name, list_pretrained(), n=3, cutoff=0.5)
        hint = f"did you mean timm://{', timm://'.join(close)}?" if close else "timm.list_pretrained() names them"
        raise FileNotFoundError(f"timm has no weights '{name}': {hint}")
    repository = config.hf_hub_id
    return repository, (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES


def hub_folder(repository: str) -> Path:
    """Where files of a repository of the hub are kept."""
    return Path(get_cache_dir()) / repository


def _to_bring(path: str) -> str:
    """Which file to fetch elsewhere, and where to put it; "" where that is not known."""
    if path.startswith(("hf-hub:", "timm://")):
        from huggingface_hub import hf_hub_url

        repository, names = hub_files(path)
        return (
            f"download {hf_hub_url(repository, names[0])} elsewhere and put it at {hub_folder(repository) / names[0]}"
        )
    if path.startswith("detectron2://"):
        from detectron2.utils.file_io import Detectron2Handler

        path = Detectron2Handler.S3_DETECTRON2_PREFIX + path.removeprefix("detectron2://")
    if path.startswith(("http://", "https://")):
        return f"download {path} elsewhere and put it at {Path(get_cache_dir()) / urlparse(path).path.lstrip('/')}"
    return ""


def local_weights(path: str) -> Path:
    """The local file of a value of MODEL.WEIGHTS, fetched if need be.

    Raises:
        FileNotFoundError: there is none, or it cannot be fetched; the message says which file to bring, and where to.
    """
    try:
        local = Path(PathManager.get_local_path(path))
    except Exception as error:  # each of PathManager's handlers raises errors of its own (network, catalogue)
        reason = " ".join(str(error).split())[:300]
        if path.startswith("package://") or reason.startswith("timm has no weights"):
            raise FileNotFoundError(f"MODEL.WEIGHTS: {path}: {reason}") from error
        try:
            bring = _to_bring(path)
        except (ImportError, FileNotFoundError, ValueError):
            bring = ""
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: cannot fetch {path} ({reason}); {bring or 'download it elsewhere'}, or give its local path"
        ) from error
    if not local.is_file():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: there is no file {path}; correct the path, or set it to '' to start from random weights"
        )
    return local


def initial_weights(cfg: CfgNode) -> str:
    """MODEL.WEIGHTS, or with MODEL.TIMM.PRETRAINED the timm model's own; "" for random ones."""
    if cfg.MODEL.WEIGHTS or not cfg.MODEL.TIMM.PRETRAINED or cfg.MODEL.BACKBONE.NAME != "build_timm_backbone":
        return cfg.MODEL.WEIGHTS
    return f"timm://{cfg.MODEL.TIMM.NAME}"


PathManager.register_handler(PackageHandler(), allow_override=True)
PathManager.register_handler(HubHandler(), allow_override=True)
