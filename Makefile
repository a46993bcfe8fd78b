# make book     run the chapters that changed, build the book from them
# make test     lint, types, a build with warnings as errors, every chapter's
#               outputs compared, the unit tests
# make html     build the book from the stored outputs
# make refresh  run chapters and store their outputs: make refresh CHAPTER=path
# make lint, types, unit, compare  the parts of make test
# make fuzz     the tests of random examples, other ones and many more (minutes)
# make test-kills  results are the same though who makes them is killed twenty times
# make test-cpus  compare the chapters as other processors would compute them
# make test-ties  compare them with equal keys in a random order
# make clean    remove what was built; the environment in .venv stays
#
# Options: PYTHON=python3.12, TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
CHAPTER ?=
WORKERS = 2

PY := .venv/bin/python
DONE := .venv/installed
QUIET := --disable-pip-version-check -qq
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

ifeq ($(strip $(SURVEY_CODE_DATA)),)
ifneq ($(wildcard ../shared/data/.),)
export SURVEY_CODE_DATA := $(realpath ../shared/data)
endif
endif

# No cell takes more than 15 s on an idle core; limits leave room for a busy one.
NBVAL = SURVEY_CODE_ROUNDING=check $(PY) -m pytest --nbval --nbval-current-env \
	--nbval-kernel-startup-timeout=300 --nbval-cell-timeout=180 -n $(WORKERS) --dist loadfile -p no:cacheprovider -W default \
	$$($(PY) book/_tools/toc.py)

.NOTPARALLEL:
.PHONY: book test html refresh lint types unit fuzz compare test-kills test-cpus test-ties clean

book: $(DONE)
	@$(PY) book/_tools/run.py
	@$(PY) book/_tools/build.py --executed

test: $(DONE)
	@echo "== ruff"
	@$(MAKE) -s lint
	@echo "== mypy; the book, warnings are errors"
	@$(MAKE) -s types & types=$$!; \
	$(PY) book/_tools/build.py --strict && wait $$types
	@echo "== nbval: every chapter, outputs compared"
	@$(MAKE) -s compare
	@echo "== unit tests, examples in docstrings"
	@$(MAKE) -s unit

lint: $(DONE)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

types: $(DONE)
	@$(PY) -m mypy

unit: $(DONE)
	@$(PY) -m pytest -n $(WORKERS) tests
	@$(PY) -m pytest --doctest-modules survey_code

fuzz: $(DONE)
	@$(PY) -m pytest -n $(WORKERS) -m hypothesis --hypothesis-profile=fuzz tests

test-kills: $(DONE)
	@$(PY) -m pytest -m kills tests/lab

html: $(DONE)
	@$(PY) book/_tools/build.py

refresh: $(DONE)
	@$(PY) book/_tools/run.py --refresh $(CHAPTER)

test-cpus: $(DONE)
	@for threads in 1 2; do for cpu in default avx2 ""; do \
	echo "== ATEN_CPU_CAPABILITY=$${cpu:-unset}, $$threads thread(s)"; \
	if [ -n "$$cpu" ]; then export ATEN_CPU_CAPABILITY=$$cpu; \
	else unset ATEN_CPU_CAPABILITY; fi; \
	SURVEY_CODE_THREADS=$$threads $(MAKE) -s compare WORKERS=$$((2 / threads)) \
	|| exit 1; done; done

test-ties: $(DONE)
	@PYTHONPATH=$(CURDIR)/book/_tools/ties $(MAKE) -s compare

compare: $(DONE)
	@$(NBVAL)

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Where Python comes without ensurepip (Debian), the pip outside starts the one
# inside.
$(DONE): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"This needs Python 3.11 or newer, and $(PYTHON) is " \
	+ sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv .venv >/dev/null 2>&1 \
	|| { $(PYTHON) -m venv --clear --without-pip .venv \
	&& $(PYTHON) -m pip --python $(PY) install $(QUIET) pip; }
	@echo "Installing the pinned packages into .venv (some minutes, 2 GB or more)"
	@$(PY) -m pip install $(QUIET) $(INDEX) -r requirements.txt
	@$(PY) -m pip install $(QUIET) --no-deps --no-build-isolation -e .
	@touch $@
