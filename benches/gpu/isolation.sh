#!/usr/bin/env bash
# Isolated workers on a machine with an NVIDIA GPU, PyTorch and Python 3.10 or newer; the wheel is
# built elsewhere (`maturin build --release -o .whl`), so that machine needs no Rust.
#
#     benches/gpu/isolation.sh [WHEEL] [OUT] [ARGUMENTS of isolation.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
wheel=$(ls ${1:-.whl/*.whl})
out=${2:-out}
shift $(($# < 2 ? $# : 2))
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheel"
export PYTHONPATH="$site" PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
python3 benches/gpu/isolation.py --out "$out/isolation.json" "$@" | tee "$out/isolation.txt"
