# 每个目标各自备齐 .venv，全新克隆上只需 Python ≥ 3.10 与软件源。
#   make demo          训练、编码、评估内置的 8,192 个真实物品，并展示共享前缀的物品
#   make test          全部测试
#   make check         ruff、格式、mypy
#   make bench-encode  编码速度，与同类工具同场对照
#   make bench-train   一步训练与 k-means 的速度，与需求草稿、faiss 对照
#   make bench-quality 质量总表：误差、冲突、均匀、语义、时间，与同类工具并排，可续跑（ARGS="--report"）
#   make bench-behaviour 行为引导换来的提升度与付出的误差
#   make bench-decode  受约束解码的一步与建树，与 STATIC 的做法、marisa-trie、字典对照
#   make bench-evaluate 评估一百万物品的时间与内存（ARGS="--rows 1000000"）
#   make bench-report  十万个物品的报告有多大、多久打开（要 Chromium）
#   make bench-core    默认配方的质量与时间，与 faiss 残差 k-means 对照（ARGS="--features x.npy"）
#   make bench-catalog 唯一 ID 的代价、迁移、规模与查找（ARGS="--rows 10000000"）
#   make bench-downstream 同一个生成式推荐模型换上各家的 ID，看推荐得准不准；可续跑（ARGS="--report"）
#   make torture       折磨全部的承诺：kill −9、满的磁盘、坏的文件、胡闹的输入、相遇的进程（ARGS="--minutes 30 --seed 1"）
# 换解释器：make PYTHON=python3.12 test。给命令加参数：make test ARGS="-k codebook"。

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
# 这些文件变了就重装；pip 只补差额，所以通常几秒
INPUTS := pyproject.toml constraints.txt $(wildcard setup.py) $(wildcard algorithm/semantic_id/search/kernel/*)

.PHONY: help demo test check bench-encode bench-train bench-core bench-quality bench-behaviour bench-decode bench-evaluate bench-report bench-catalog bench-downstream torture clean

help:
	@sed -n '2,15s/^#   //p' Makefile

demo: $(VENV)/.installed
	@$(BIN)/semid demo $(ARGS)

test: $(VENV)/.installed
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

bench-encode bench-train bench-core bench-quality bench-behaviour bench-decode bench-evaluate bench-report bench-catalog bench-downstream: $(VENV)/.installed-bench
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/$(subst -,_,$@).py $(ARGS)

torture: $(VENV)/.installed
	@$(BIN)/python -m algorithm.semantic_id.tests.torture $(ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info algorithm/semantic_id/search/*.so

# 标记文件最后才写：装到一半断了，下次会接着装
$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	@echo "安装依赖（首次要下载 PyTorch，需要几分钟）……"
	@$(PIP) -e ".[test,ray]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(PIP) -e ".[bench]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("需要 Python ≥ 3.10，现在是 %d.%d；用 make PYTHON=python3.12 指定" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	@echo "建立虚拟环境 $(VENV)……"
	@$(PYTHON) -m venv $(VENV)
