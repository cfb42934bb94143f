"""Importing rc2l first makes detectron2 importable in every test file, whatever its order of imports."""

import rc2l  # noqa: F401
