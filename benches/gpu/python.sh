#!/usr/bin/env bash
# What a machine with an NVIDIA GPU, PyTorch and Python 3.10 or newer runs; the wheel is built
# elsewhere (`maturin build --release -o .whl`), so that machine needs no Rust.
#
#     benches/gpu/python.sh [WHEEL] [OUT]
set -euo pipefail
cd "$(dirname "$0")/../.."
wheel=$(ls ${1:-.whl/*.whl})
out=${2:-out}
mkdir -p "$out"
site=$(mktemp -d)
python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheel"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
python3 benches/gpu/cuda_graph.py | tee "$out/cuda_graph.txt" || true
for mode in "--use-batching --workers 1" ""; do
    # shellcheck disable=SC2086
    python3 tests/correctness_benchmark.py --device cuda --parallel --threads 8 $mode \
        | tee -a "$out/correctness.txt" || true
done
python3 benches/peers/throughput.py --device cuda --threads 1,8,64,256 --seconds 1 --runs 3 \
    | tee "$out/throughput.txt"
