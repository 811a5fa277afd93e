# What README names. `make demo` and `make test` set up everything they need.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Models, ONNX Runtime and demo clips; clipmill looks in the same place.
export CLIPMILL_HOME ?= $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/clipmill

# Names are the same on Debian 12 and Ubuntu 24.04.
BUILD_PACKAGES := build-essential pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev \
	libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libffmpeg-nvenc-dev
RUN_PACKAGES := gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
	gstreamer1.0-plugins-ugly gstreamer1.0-libav
SETUP_PACKAGES := python3 python3-venv ca-certificates
PYTHON := $(CLIPMILL_HOME)/setup-venv/bin/python
PEERS := .venv/bin/python

.PHONY: help packages setup gpu gpu-packages quantizer readers demo test eval check bench bench-peers bench-index pack-gpu
help:
	@echo "make demo    set up, index a handful of real clips, search them"
	@echo "make test    set up, run all tests"
	@echo "make setup   Debian packages, ONNX Runtime, OpenVINO (not with WITHOUT=openvino), the default model"
	@echo "make gpu     NVIDIA's compiler for the kernels (NVRTC, from PyPI), where CUDA is not installed"
	@echo "make eval    score the default model on UCF101's clips, in fp32 and as it runs here"
	@echo "make check   formatting and lints"
	@echo "make bench   each stage alone, then the whole; results in benches/results/"

# Quick where all are there; asks nothing.
packages:
	@missing=(); for p in $(BUILD_PACKAGES) $(RUN_PACKAGES) $(SETUP_PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing+=($$p); \
	done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "installing Debian packages: $${missing[*]}"; \
		root=$$([ $$(id -u) = 0 ] || echo "sudo -n"); \
		$$root apt-get update -qq || true; \
		$$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			"$${missing[@]}" > /dev/null || { echo "error: could not install them; as root: apt-get install $${missing[*]}"; exit 1; }; \
	fi
	@command -v cargo > /dev/null || { echo "error: cargo is missing; install Rust 1.95 or newer (rustup.rs)"; exit 1; }

$(PYTHON):
	@mkdir -p $(CLIPMILL_HOME)
	@python3 -m venv $(CLIPMILL_HOME)/setup-venv
	@$@ -m pip install -q --disable-pip-version-check numpy==2.4.6 onnx==1.23.2

setup: packages
	@$(MAKE) -s $(PYTHON)
	@$(PYTHON) stages/models/fetch.py --home $(CLIPMILL_HOME) $(if $(WITHOUT),--without $(WITHOUT))
	@$(PYTHON) kernels/fetch.py --home $(CLIPMILL_HOME) headers || echo "note: clipmill is built without TensorRT"
	@# Cargo watches that folder only if it was there at the last build.
	@if [ kernels/build.rs -ot $(CLIPMILL_HOME)/include ]; then touch kernels/build.rs; fi

# What tests of the GPU path use where there is no GPU; without, they skip aloud.
gpu-packages: packages
	@$(MAKE) -s $(PYTHON)
	@$(PYTHON) kernels/fetch.py --home $(CLIPMILL_HOME) gpu-packages || echo "note: tests with NVRTC or TensorRT-RTX are skipped"

# The compiler of our kernels, for who has a driver and no CUDA toolkit.
gpu: packages
	@$(MAKE) -s $(PYTHON)
	@$(PYTHON) kernels/fetch.py --home $(CLIPMILL_HOME) nvrtc

# What `clipmill model quantize` works with.
quantizer: setup
	@$(PYTHON) -c "import onnxruntime" 2> /dev/null || \
		$(PYTHON) -m pip install -q --disable-pip-version-check onnxruntime==1.31.1

# What people read runs and exports with, for tests/readers.rs and tests/export.rs. embedding-reader asks for
# an older pandas than it needs.
READERS := tests/data/readers-requirements.txt
readers: packages
	@mkdir -p $(CLIPMILL_HOME)
	@venv=$(CLIPMILL_HOME)/readers-venv; cmp -s $(READERS) $$venv/installed.txt || { \
		[ -x $$venv/bin/python ] || python3 -m venv $$venv; \
		$$venv/bin/python -m pip install -q --disable-pip-version-check -r $(READERS); \
		$$venv/bin/python -m pip install -q --disable-pip-version-check --no-deps embedding-reader==1.8.1; \
		cp $(READERS) $$venv/installed.txt; }

# The concept bank is made by clipmill itself, with the tokenizer that searches will use.
BANK := $(CLIPMILL_HOME)/models/efficientnet-lite0-minilm/concepts.npy

demo: setup
	@cargo build --release --quiet -p pipeline
	@[ -f $(BANK) ] || target/release/clipmill model build efficientnet-lite0-minilm
	@mkdir -p runs/demo-clips && cp -n $(CLIPMILL_HOME)/clips/*.mp4 $(CLIPMILL_HOME)/clips/*.mpg runs/demo-clips/
	@echo "$$ clipmill run configs/demo.toml"
	@target/release/clipmill run configs/demo.toml
	@echo; echo '$$ clipmill search runs/demo "people riding bicycles" -k 3'
	@target/release/clipmill search runs/demo "people riding bicycles" -k 3
	@echo; echo '$$ clipmill search runs/demo "a rabbit in a meadow" -k 3'
	@target/release/clipmill search runs/demo "a rabbit in a meadow" -k 3

test: quantizer readers gpu-packages
	cargo build --workspace --all-targets
	@[ -f $(BANK) ] || target/debug/clipmill model build efficientnet-lite0-minilm
	CLIPMILL_REQUIRE_MODEL=1 cargo test --workspace --no-fail-fast

# Clips named as UCF101 names them, or a folder a class.
EVAL_CLIPS ?= $(firstword $(wildcard ../shared/videos/Satyamwork43_Video_App data/ucf101))
eval: setup
	@cargo build --release --quiet -p pipeline
	@[ -f $(BANK) ] || target/release/clipmill model build efficientnet-lite0-minilm
	@[ -n "$(EVAL_CLIPS)" ] || { echo "error: no labelled clips; make eval EVAL_CLIPS=FOLDER"; exit 1; }
	target/release/clipmill model eval efficientnet-lite0-minilm $(EVAL_CLIPS) --classes tests/data/ucf101_classes.txt

check: packages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

# Clips shaped like UCF101's, made from the demo clips; see benches/peers/README.md.
BENCH_CLIPS ?= runs/bench-clips
export BENCH_RESULTS ?= $(CURDIR)/benches/results/$(shell date +%F)-$(shell hostname)

$(PEERS):
	@python3 -m venv .venv
	@$@ -m pip install -q --disable-pip-version-check -r benches/peers/requirements.txt

bench: setup $(PEERS)
	@cargo build --release --quiet -p pipeline
	@[ -f $(BANK) ] || target/release/clipmill model build efficientnet-lite0-minilm
	@[ -d $(BENCH_CLIPS) ] || $(PEERS) benches/peers/make_clips.py $(BENCH_CLIPS) 60 --source $(CLIPMILL_HOME)/clips
	cargo bench -p benches --bench preprocess
	cargo bench -p benches --bench edge
	cargo bench -p benches --bench gpu -- cpu
	cargo bench -p benches --bench stages -- $(BENCH_CLIPS)

# For a GPU machine without network: see benches/gpu/pack.sh and benches/gpu/run.sh.
pack-gpu: setup gpu $(PEERS)
	@[ -d $(BENCH_CLIPS) ] || $(PEERS) benches/peers/make_clips.py $(BENCH_CLIPS) 60 --source $(CLIPMILL_HOME)/clips
	cargo build --release -p pipeline --bin clipmill
	cargo build --release -p benches --bench gpu
	CLIPS=$(BENCH_CLIPS) benches/gpu/pack.sh target/gpu-pack

bench-peers: setup $(PEERS)
	@cargo build --release --quiet -p pipeline
	@[ -d $(BENCH_CLIPS) ] || $(PEERS) benches/peers/make_clips.py $(BENCH_CLIPS) 60 --source $(CLIPMILL_HOME)/clips
	$(PEERS) benches/peers/compare.py job configs/throughput.toml $(BENCH_CLIPS) \
		$(CLIPMILL_HOME)/models/efficientnet-lite0-minilm --clipmill target/release/clipmill
	@cargo bench --quiet -p benches --bench decode --no-run
	for mode in all count8 decode keyframes; do \
		peers=$$([[ $$mode = all || $$mode = count8 ]] && echo opencv pyav-pillow || echo libav); \
		$(PEERS) benches/peers/compare.py decode $(BENCH_CLIPS) --mode $$mode --peers $$peers \
			--ours cargo bench --quiet -p benches --bench decode --; done

# The vector index and FAISS's, in turn, on made vectors. For a million rows: BENCH_ROWS=1000000.
BENCH_ROWS ?= 100000
bench-index: setup $(PEERS)
	@[ -d runs/vectors-$(BENCH_ROWS) ] || \
		$(PEERS) benches/peers/make_vectors.py runs/vectors-$(BENCH_ROWS) --kind synthetic --rows $(BENCH_ROWS)
	@cargo bench --quiet -p benches --bench index --no-run
	$(PEERS) benches/peers/compare_index.py runs/vectors-$(BENCH_ROWS) --peer faiss-sq8-flat faiss-ivf-sq8 --lists 1000 \
		--rounds 3 --ours cargo bench --quiet -p benches --bench index --
