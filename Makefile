# Everything a newcomer or CI needs. Each target sets up what it uses. Needs Linux, Python 3.10 or newer, and make.
PYTHON ?= python3
OUT ?= out/street
BUNDLE ?= $(OUT)/bundle
STREET := examples/street

.PHONY: setup demo loop test test-oldest test-pythons test-gpu lint check-engines bench model-coverage model-answers clean

UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
EXTRAS := --extra merge --extra examples --extra outputs --extra service --extra supervision --extra tensorrt-rtx \
	--extra openvino --extra pull --extra sign --extra place
# Test models are tiny: with more than one thread per process, threads only wait for each other.
# One worker more than cores, because many tests wait: for a camera, a process, or a lease.
PYTEST := OMP_NUM_THREADS=1 PYTEST_XDIST_AUTO_NUM_WORKERS=$$(($$(nproc) + 1))
# Some machines forbid Python to write compiled modules. Then every process compiles PyTorch again, for 6 seconds.
unexport PYTHONDONTWRITEBYTECODE

setup: .venv/.ready

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --target .uv uv

.venv/.ready: pyproject.toml uv.lock | $(UV)
	$(UV) sync --quiet --locked --python $(PYTHON) $(EXTRAS)
	@mkdir -p .venv/src && ln -sfn ../.. .venv/src/gemel  # mypy needs a folder named like the package
	@touch $@

demo: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/gemel-compile $(STREET)/merged/workload.yaml -o $(BUNDLE)
	.venv/bin/gemel inspect $(BUNDLE)
	.venv/bin/gemel-run $(BUNDLE) --frames 100 --offline --video $(OUT) --results $(OUT)/results.jsonl --json $(OUT)/summary.json

# The loop between merger and box, with a scene that changes: about ten minutes on two cores.
loop: setup
	.venv/bin/python tools/loop_drill.py

test: setup lint
	$(PYTEST) .venv/bin/pytest -n auto --dist worksteal

# The base install's tests on the lowest versions that pyproject.toml allows and that have wheels for $(PYTHON). The
# tests make their bundles with the compiler extra, which is at its lowest versions too, except that torch and
# torchvision stay at the locked ones: they are in uv's cache already, and others are 3 GB to download.
BASE_TESTS := tests/bundles tests/frames tests/runtime tests/check tests/cli/test_cli_profile.py \
	tests/cli/test_cli_simulate.py
# Left out: tests/check/source compares bundles with PyTorch. Pydantic before 2.11 writes the schema without
# additionalProperties, and onnxscript before 0.7.2 exports ReLU6 as two operators; both are right, but not as tested.
NOT_BASE := --ignore=tests/check/source --deselect tests/bundles/test_manifest.py::test_published_schema \
	--deselect tests/check/regression/test_baseline.py::test_of_a_bundle
# Indirect dependencies are resolved as of this day, so that a release made later cannot fail CI.
OLDEST_AS_OF := 2026-11-27

test-oldest: .venv-oldest/.ready
	$(PYTEST) .venv-oldest/bin/python -m pytest -n auto --dist worksteal $(NOT_BASE) $(BASE_TESTS)

.venv-oldest/.ready: pyproject.toml uv.lock | $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-oldest
	$(UV) export --quiet --locked --extra compiler --extra eval --no-default-groups --group test --no-emit-project \
		--no-hashes --no-annotate --python .venv-oldest/bin/python --output-file .venv-oldest/locked.txt
	grep -E '^torch(vision)?==' .venv-oldest/locked.txt > .venv-oldest/torch.txt
	$(UV) pip compile --quiet --resolution lowest-direct --only-binary :all: --exclude-newer $(OLDEST_AS_OF) \
		--extra compiler --extra eval --constraints .venv-oldest/torch.txt --python .venv-oldest/bin/python \
		--output-file .venv-oldest/lowest.txt pyproject.toml
	$(UV) pip install --quiet --python .venv-oldest/bin/python --override .venv-oldest/lowest.txt \
		--requirements .venv-oldest/locked.txt
	$(UV) pip install --quiet --python .venv-oldest/bin/python --no-deps --editable .
	@touch $@

# All tests on each Python of this machine from 3.10 on, with locked versions. PYTHONS names others to use instead;
# TESTS limits the tests, such as TESTS=tests/runtime.
PYTHONS ?=
TESTS ?=
test-pythons: | $(UV)
	$(PYTHON) tools/run_on_pythons.py --uv $(UV) $(PYTHONS:%=--python %) $(EXTRAS) -- -n auto --dist worksteal $(TESTS)

# Tests that need an NVIDIA card; where there is none, each is skipped with the reason. TensorRT and the CUDA build of
# ONNX Runtime are not in the locked environment: set GPU_PYTHON to a Python that has them.
GPU_PYTHON ?= .venv/bin/python
test-gpu: setup
	$(GPU_PYTHON) -m pytest tests/gpu -v -rs

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p gemel

# Builds engines for cards that this machine need not have, and compares engines and bundle with the committed baseline.
check-engines: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/gemel-compile $(STREET)/merged/workload.yaml -o $(BUNDLE) --backend tensorrt-rtx --target sm86,sm89,sm120
	.venv/bin/gemel check $(BUNDLE) --baseline $(STREET)/baseline.json

# Takes minutes and needs both cores of a quiet machine.
bench: setup
	.venv/bin/python tools/make_street_example.py
	.venv/bin/python tools/bench_cpu.py

model-coverage: setup
	.venv/bin/python tools/model_coverage.py

# Libraries whose models and answers are compared; packages.txt is installed without what it depends on.
.venv-coverage/.ready: pyproject.toml uv.lock tools/coverage_cases/libraries.txt tools/coverage_cases/packages.txt | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv-coverage $(UV) sync --quiet --locked --python $(PYTHON) $(EXTRAS)
	$(UV) export --quiet --locked $(EXTRAS) --no-emit-project --no-hashes --no-annotate --output-file .venv-coverage/locked.txt
	$(UV) pip install --quiet --python .venv-coverage/bin/python --constraint .venv-coverage/locked.txt \
		--requirements tools/coverage_cases/libraries.txt
	$(UV) pip install --quiet --python .venv-coverage/bin/python --no-deps --requirements tools/coverage_cases/packages.txt
	@touch $@

model-answers: .venv-coverage/.ready
	.venv-coverage/bin/python tools/model_answers.py

clean:
	rm -rf .venv .venv-oldest .venv-pythons .venv-coverage .uv out build *.egg-info
