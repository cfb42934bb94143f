"""What the wheel holds beside the package: configs, tools, and detectron2, which no registry has ready to install.

detectron2's Python files come from the registry's ``detectron2-cdo`` 0.5, the official 0.5 without its C++ sources,
whose own build asks for PyTorch and a compiler. RC²L needs no compiled operator, so the files are taken as they are,
checked by their hash, and lie in ``rc2l/bundled/``. :mod:`rc2l.compat` reads them only where no other detectron2 is
installed. ``RC2L_BUNDLE_DETECTRON2=0`` leaves them out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
DETECTRON2 = "detectron2-cdo==0.5 --hash=sha256:53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18\n"
#: Stands in for PyTorch while detectron2's files are packed. Its build extension builds nothing, and the extras go: pip
#: refuses whatever has one with an address.
TORCH = {
    "torch/__init__.py": """
__version__ = "1.8"
from setuptools.dist import Distribution
original = Distribution.__init__
def without_extras(self, attrs=None):
    original(self, {key: value for key, value in (attrs or {}).items() if key != "extras_require"})
Distribution.__init__ = without_extras
class version: hip = None
class cuda: is_available = staticmethod(lambda: False)
from torch import utils
""",
    "torch/utils/__init__.py": "from torch.utils import cpp_extension\n",
    "torch/utils/cpp_extension.py": """
from setuptools import Extension as CppExtension
from setuptools.command.build_ext import build_ext
CUDA_HOME = ROCM_HOME = CUDAExtension = None
class BuildExtension(build_ext):
    def run(self): pass
""",
}


def bundle_detectron2(folder: Path) -> None:
    """Put detectron2's Python files into a folder.

    Raises:
        SystemExit: they cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in TORCH.items():
            path = Path(scratch, "stub", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(DETECTRON2, encoding="utf-8")
        paths = [str(Path(scratch, "stub")), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--require-hashes"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--quiet", "--wheel-dir", scratch]
        try:
            subprocess.run(
                [*command, "--requirement", str(requirements)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                "error: detectron2-cdo 0.5 could not be fetched by pip; where another detectron2 is installed, set "
                "RC2L_BUNDLE_DETECTRON2=0"
            ) from error
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            kept = [name for name in archive.namelist() if name.startswith("detectron2/") or "LICENSE" in name]
            archive.extractall(folder, kept)


class BuildWithData(build_py):
    """The package, and what it reads; an editable install has all but detectron2 in its clone."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "rc2l")
        for name in ("configs", "tools"):
            shutil.copytree(
                HERE / name, package / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        if os.environ.get("RC2L_BUNDLE_DETECTRON2", "1") != "0":
            bundle_detectron2(package / "bundled")


setup(cmdclass={"build_py": BuildWithData})
