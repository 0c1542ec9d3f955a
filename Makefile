BIN := .venv/bin
DEMO := build/demo
PICTURE := configs/demo/sample.png
# A worker for each core, but at most eight: each takes about 1 GiB. The tests of a file share what
# it prepares, so they stay together, and files begin in their order: those that come late are short.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup android-tools demo test format bench screenshots train-demo clean

help: ## shows this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1#\2/p' $(MAKEFILE_LIST) | awk -F"#" "{printf \"%-20s%s\\n\", \$$1, \$$2}"

setup: ## makes .venv and installs what is missing; the others do this first
	@.ci/setup

android-tools: setup ## installs what `minicpmv apk` and `sideload` need, or names it
	@$(BIN)/python -m android.build.install_tools apk sideload

demo: setup ## converts, checks and asks the demo model
	$(BIN)/minicpmv convert --output $(DEMO) --target host,onnx
	$(BIN)/minicpmv info $(DEMO)
	$(BIN)/minicpmv verify $(DEMO)
	$(BIN)/minicpmv chat $(DEMO) --image $(PICTURE) --greedy --prompt "What colour is the shape?"
	$(BIN)/minicpmv chat $(DEMO) --image $(PICTURE) --greedy --prompt "这个图形是什么颜色？"

test: ## sets up, checks format, style, types and imports, and runs the tests
	@.ci/setup tests
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	@$(BIN)/pytest -m "not slow and not gpu and not device" $(PARALLEL) --durations 20

format: setup ## formats the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measures the conversion of the demo
	$(BIN)/python -m tests.bench.convert

screenshots: setup ## takes the pictures of the app's screens anew
	MINICPMV_SCREENSHOTS=build/screens $(BIN)/pytest -q tests/android/test_screens.py \
		tests/android/test_page_http.py::test_the_demo
	$(BIN)/python -m tests.android.screens build/screens android/screens

train-demo: setup ## trains the demo checkpoints anew; two hours
	$(BIN)/python -m runtime.demo.train -o build/demo-checkpoint
	$(BIN)/python -m runtime.demo.train -o build/demo-2.0-checkpoint --task demo-2.0

clean: ## removes what the demo made
	rm -rf build
