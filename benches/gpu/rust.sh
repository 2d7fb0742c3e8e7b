#!/usr/bin/env bash
# `onelane-bench load` on a machine with an NVIDIA GPU and no Rust; benches/gpu/build.sh makes the binaries.
#
#     benches/gpu/rust.sh [FOLDER] [OUT]      FOLDER has onelane and onelane-bench
#
# The driver's library is found where the machine has it; nvrtc, cuBLAS and cuRAND are those of the
# `nvidia` Python packages (PyTorch brings them), or of CUDA_LIBRARIES=FOLDER.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-target/cuda}
out=${2:-out}
mkdir -p "$out"
libraries=${CUDA_LIBRARIES:-$(python3 -c '
import pathlib, sysconfig
for site in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
    for library in pathlib.Path(site, "nvidia").glob("cu*/lib"):
        print(library)
' | paste -sd: -)}
test -n "$libraries" || { echo "no CUDA libraries: set CUDA_LIBRARIES=FOLDER" >&2; exit 2; }
driver=$(ldconfig -p | awk '/libcuda\.so\.1 .*x86-64/ && !found++ { print $NF }')
for place in /usr/lib/x86_64-linux-gnu /usr/lib /usr/lib64 /usr/local/nvidia/lib64; do
    if test -z "$driver" && test -e "$place/libcuda.so.1"; then driver=$place/libcuda.so.1; fi
done
test -n "$driver" || { echo "no libcuda.so.1: is the driver installed?" >&2; exit 2; }
# The binaries look symbols of the driver up as they need them, so that library has to be there first.
export LD_PRELOAD=$driver LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$folder/onelane" devices
bench() {
    local name=$1
    shift
    "$folder/onelane-bench" load --device cuda --engine mlp --rounds "${ROUNDS:-3}" "$@" | tee "$out/$name.txt"
}
time=${SECONDS_EACH:-0.7}
# With direct each client has an engine and a cuBLAS handle of its own: not for 256.
bench threads --strategy direct,lock,queue-1,queue,offline --threads 8,64 --seconds "$time"
bench many-threads --strategy lock,queue-1,queue,offline --threads 256,512 --seconds "$time"
bench tasks --strategy queue-1,queue,offline --tasks 64,256,1024 --seconds "$time"
# The same without a thread beside the worker.
bench worker-delivers --delivery worker --strategy queue,offline --threads 64,256,512 --tasks 64,256,1024 \
    --seconds "$time"
# CUDA is thread-safe: what one worker does between two batches, and copying rows, others do meanwhile.
for workers in 2 4; do
    bench "$workers-workers" --workers "$workers" --strategy queue,offline --threads 8,64,256 \
        --tasks 64,256,1024 --seconds "$time"
done
# Tasks need few threads of their own, and workers and the driver share the processors with them.
bench six-workers --workers 6 --task-threads 4 --strategy queue,offline --tasks 256,1024 --seconds "$time"
# The limit of candle as it comes.
bench without-graphs --no-cuda-graphs --strategy queue,offline --threads 8,64,256 --tasks 256 --seconds "$time"
