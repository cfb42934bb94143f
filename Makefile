# Everything from a clone: `make demo` and `make test`. uv is installed into .uv/ where it is not on the PATH.
PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
RUN := .venv/bin/python

.PHONY: install demo table test test-fast lint docs clean

install: .venv/installed

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: pyproject.toml $(filter .uv/bin/uv,$(UV))
	$(UV) sync
	touch $@

demo: install
	$(RUN) tools/demo.py

table: install
	$(RUN) tools/table.py configs/papers/shapes.yaml --seeds 3 4 5 --jobs $$(nproc) --output output/table

# A file's tests share what they set up, so whole files are dealt to the processes, in the order of tests/conftest.py.
# One thread each: two processes of two threads on two cores wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST)

# All but whole runs: kills, resumes, several processes, command lines.
test-fast: install
	$(PYTEST) -m "not whole_run"

lint: install
	.venv/bin/ruff check
	.venv/bin/ruff format --check

# The documentation as a site in output/site; a link that leads nowhere is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(UV) run --quiet --group docs mkdocs build --quiet

clean:
	rm -rf .venv .uv output .pytest_cache .ruff_cache
