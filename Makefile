# Every target makes the environment it needs, so `make demo` is all that a fresh clone takes.
#   make demo ARGS="num_steps=10 seed=1"     ARGS go to the command behind the target

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := $(or $(RLHF_RAY_VENV),.venv)
PYTHON := $(VENV)/bin/python
SETUP := @launch/setup.sh
ARGS ?=
# Some machines turn it off; then every process of Ray would compile each module again.
export PYTHONDONTWRITEBYTECODE :=
# Neighbouring tests go to one process, which makes what they share once.
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

SMOLLM2 := outputs/models/smollm2-135m
SHELL_SCRIPTS := $(wildcard launch/*.sh) launch/slurm.sbatch .ci/run
DOCKERFILES := docker/Dockerfile docker/Dockerfile.cpu

.PHONY: help setup demo demo-ppo pipeline product pipeline-smollm2 smollm2 quick test test-slow test-cluster test-gpu mutation lock audit lint bench agreement docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## the environment for running, testing and linting, in .venv
	$(SETUP) dev

demo: ## GRPO on a tiny model made on the spot: a reward that rises, in minutes, on a CPU
	$(SETUP)
	@$(PYTHON) -m rlhf_ray.main recipe=demo output_dir=outputs/demo $(ARGS)

demo-ppo: ## the same task with PPO and a critic
	$(SETUP)
	@$(PYTHON) -m rlhf_ray.main recipe=demo_ppo output_dir=outputs/demo_ppo $(ARGS)

pipeline: ## data, pre-training, SFT, reward model, DPO and PPO on a tiny model, one after the other
	$(SETUP) data
	@$(PYTHON) -m rlhf_ray.main recipe=pipeline_demo output_dir=outputs/pipeline_demo $(ARGS)

product: ## after `make pipeline`: its policy evaluated, compressed, exported, served and asked
	$(SETUP) data
	@launch/setup_compress.sh
	@$(PYTHON) launch/product.py $(ARGS)

pipeline-smollm2: ## fetch SmolLM2-135M, then the same stages on it
	$(SETUP) data smollm2
	@$(PYTHON) -m rlhf_ray.models.smollm2 $(SMOLLM2)
	@$(PYTHON) -m rlhf_ray.main recipe=pipeline_smollm2 output_dir=outputs/pipeline_smollm2 $(ARGS)

smollm2: ## fetch SmolLM2-135M, then GRPO on it with a rule as the reward
	$(SETUP) smollm2
	@$(PYTHON) -m rlhf_ray.models.smollm2 $(SMOLLM2)
	@$(PYTHON) -m rlhf_ray.main recipe=smollm2_grpo output_dir=outputs/smollm2_grpo $(ARGS)

quick: ## the unit tests that neither train nor wait, in two to three minutes on two cores
	$(SETUP) dev
	@$(PYTHON) -m pytest tests/unit -m "not unit_slow and not slow and not gpu" $(PARALLEL) $(ARGS)

test: ## every test that takes seconds
	$(SETUP) dev
	@$(PYTHON) -m tests.parts -m "not slow and not gpu and not cluster" $(ARGS)

test-slow: ## the tests that take minutes
	$(SETUP) dev smollm2 serve lm-eval
	@$(PYTHON) -m pytest -m "slow and not gpu and not cluster" $(ARGS)

test-cluster: ## several hosts on this machine, by root: jobs, lost hosts, Slurm, ray up
	$(SETUP) dev
	@$(PYTHON) -m pytest tests/cluster -m cluster $(ARGS)

mutation: ## breaks the algorithms in small ways: do the tests notice? outputs/mutation.json
	$(SETUP) dev
	@$(PYTHON) -m tests.mutation.run $(ARGS)

test-gpu: ## the tests that need a GPU
	$(SETUP) dev
	@$(PYTHON) -m pytest -m gpu $(ARGS)

lock: ## launch/locks again: versions and hashes of every package (ARGS=--upgrade for newest)
	@launch/lock.sh $(ARGS)

audit: ## licences of the installed packages, and known vulnerabilities where the network allows
	$(SETUP) dev
	@source launch/uv_env.sh && $(PYTHON) launch/audit.py --uv "$${uv[0]}"

lint: ## Python, types, shell, Dockerfiles, and the files that start clusters
	$(SETUP) dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/shellcheck --external-sources $(SHELL_SCRIPTS)
	$(VENV)/bin/hadolint $(DOCKERFILES)
	$(PYTHON) launch/validate.py

bench: ## this project against the raw libraries and a peer; writes outputs/bench.json
	$(SETUP) bench smollm2
	@$(PYTHON) -m rlhf_ray.models.smollm2 $(SMOLLM2)
	@$(PYTHON) -m benchmarks.run $(ARGS)

agreement: ## the losses of sft, reward_model, preference against TRL's; outputs/agreement.json
	$(SETUP) bench
	@$(PYTHON) -m benchmarks.agreement $(ARGS)

docs: ## docs/configuration.md from the configuration's own dataclasses
	$(SETUP)
	@$(PYTHON) -m rlhf_ray.config.reference docs/configuration.md

clean: ## what tests, builds and tools leave behind; keeps .venv and outputs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis multirun
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
