# wanpipe. `make demo` makes videos with a tiny model, `make test` runs lint, types and tests.
# Needs Python 3.11 or newer. Everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
WANPIPE := $(BIN)/wanpipe
# MLX's backend: Metal on macOS, CUDA with an NVIDIA driver, otherwise the CPU
EXTRA := $(shell [ "$$(uname)" = Darwin ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo '[cuda13]' || echo '[cpu]'; })

.PHONY: help demo demo-circle demo-star demo-square picture docs test quick lint types unit long browser format package films clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(EXTRA)' --group dev
	touch $@

# decoding takes a quarter longer where glibc returns the memory of each array to the system
demo picture: export MALLOC_MMAP_THRESHOLD_ = 268435456
demo picture: export MALLOC_TRIM_THRESHOLD_ = 268435456
DEMO = $(WANPIPE) demo --seed 1 --seed 2 --output-dir out/demo
CIRCLE = "a red circle moves right on a white background"
demo: .venv/ready  ## make videos with the tiny included model
	@mkdir -p out
	@echo "Three prompts at once; the progress is that of the first."
	@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) --no-print-directory --jobs=3 demo-circle demo-star demo-square
	@echo "The first prompt again: everything is already in the cache."
	$(DEMO) $(CIRCLE)
	@$(WANPIPE) gallery --output out/demo/gallery --quiet >/dev/null
	@echo "Look at out/demo: six videos, and a contact sheet (.png) for each prompt."
	@echo "Open out/demo/gallery/index.html: the videos with their steps and settings."

demo-circle:
	$(DEMO) $(CIRCLE)
demo-star:
	$(DEMO) --quiet "a yellow star moves up on a black background"
demo-square:
	$(DEMO) --quiet "a blue square grows on a grey background"

picture: .venv/ready  ## draw the pictures of the README and the documentation
	$(BIN)/python docs/picture.py
	$(BIN)/python docs/pictures.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/ready  ## build the documentation into site/; open site/index.html
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/offline.py site

test: lint types docs unit  ## run all checks and build the documentation

TESTS = -m 'not browser and not long'
quick: TESTS = -m 'not slow and not long'
quick: lint types unit  ## run the checks without the slow tests

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

# tests multiply small matrices, and may run beside other work
unit: export OPENBLAS_NUM_THREADS = 1
# they write thousands of small files: in memory, where Linux offers 8 GB or more for that
unit: export TMPDIR ?= $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 8e6 {print "/dev/shm"}')
unit: .venv/ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(TESTS)

long: TESTS = -m long
long: unit  ## run the tests that `make test` leaves out, because they take minutes

browser: export OPENBLAS_NUM_THREADS = 1
browser: .venv/ready  ## test the gallery in Chromium, where there is one
	$(BIN)/python -m pytest -m browser -rs tests/browser

format: .venv/ready  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: .venv/ready  ## build the wheel and the source distribution into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# One video per seed, with one rule per stage. Each target is a file that contains an entry's path.
#   make films MODEL=cache/convert/… PROMPT="a cat plays the piano" SEEDS="1 2 3" DENOISE="--steps 30"
OUT ?= out
SEEDS ?= 0

films: $(SEEDS:%=$(OUT)/film-%.mp4)  ## make one video per seed: MODEL=… PROMPT="…" SEEDS="1 2 3"

ifneq ($(filter films $(OUT)/%,$(MAKECMDGOALS)),)
# `value` keeps make from expanding a $ in a prompt. The rules read both from the environment, so that
# the shell does not expand anything either.
override MODEL := $(value MODEL)
override PROMPT := $(value PROMPT)
export MODEL PROMPT
$(if $(MODEL),,$(error pass MODEL=DIR, a directory that `wanpipe convert` wrote))
$(if $(PROMPT),,$(error pass PROMPT="what the video shows"))
# These files hold the settings and change only with them, so a new prompt makes the text again.
quote = '$(subst ','\'',$1)'
record = $(shell mkdir -p $(OUT) && cd $(OUT) && printf '%s\n' $(call quote,$2) >$1.new && \
  { cmp -s $1.new $1.asked && rm $1.new || mv $1.new $1.asked; })
$(call record,text,$(MODEL) $(PROMPT))
$(call record,latent,$(value DENOISE))
endif

$(OUT)/text: $(OUT)/text.asked
	$(WANPIPE) encode-text --model "$$MODEL" --prompt "$$PROMPT" >$@.path && mv $@.path $@

$(OUT)/latent-%: $(OUT)/text $(OUT)/latent.asked
	$(WANPIPE) denoise --model "$$MODEL" --from "$$(cat $<)" --seed $* $(DENOISE) >$@.path && mv $@.path $@

$(OUT)/film-%.mp4: $(OUT)/latent-%
	$(WANPIPE) decode --model "$$MODEL" --from "$$(cat $<)" --output $@ >$(OUT)/frames-$* && touch $@

clean:  ## remove the files of `make films`
	rm -rf $(OUT)

.SECONDARY:
.DELETE_ON_ERROR:
