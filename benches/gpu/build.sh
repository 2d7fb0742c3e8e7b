#!/usr/bin/env bash
# Builds `onelane` and `onelane-bench` with CUDA on a machine that has neither a GPU nor a CUDA toolkit: compiler, headers
# and libraries come as Python wheels. The binaries run on a machine with an NVIDIA GPU and no Rust
# (benches/gpu/rust.sh).
#
#     benches/gpu/build.sh [FOLDER]      the binaries are FOLDER/onelane and FOLDER/onelane-bench
#
# CUDA_VERSION   the driver's version: a newer compiler makes code that the driver refuses (13.0)
# COMPUTE_CAP    the GPU's compute capability, 90 for an H100
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:-target/cuda}")
cuda=${CUDA_VERSION:-13.0}
mkdir -p "$folder/link"
if ! test -x "$folder/venv/bin/python"; then
    python3 -m venv "$folder/venv"
fi
packages=()
for name in nvcc runtime cccl crt nvrtc; do packages+=("nvidia-cuda-$name==$cuda.*"); done
"$folder/venv/bin/python" -m pip install --quiet "${packages[@]}" \
    "nvidia-nvvm==$cuda.*" "nvidia-cublas==$cuda.*" nvidia-curand
home=$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu"${cuda%%.*}")
# candle's kernels for quantised weights take most of an hour of compiling on a busy machine, and
# nothing here calls them: an empty file is compiled in their place. The linker ignores what is missing.
mkdir -p "$folder/nvcc/bin"
ln -sfn "$home/include" "$folder/nvcc/include"
ln -sfn "$home/lib" "$folder/nvcc/lib64"
: >"$folder/nvcc/empty.cu"
cat >"$folder/nvcc/bin/nvcc" <<WRAPPER
#!/usr/bin/env bash
arguments=()
for argument in "\$@"; do
    case "\$argument" in
        *moe_*.cu | *mmq_*.cu | *mmvq_*.cu) arguments+=("$folder/nvcc/empty.cu") ;;
        *) arguments+=("\$argument") ;;
    esac
done
exec "$home/bin/nvcc" "\${arguments[@]}"
WRAPPER
chmod +x "$folder/nvcc/bin/nvcc"
export NVCC=$folder/nvcc/bin/nvcc
export CUDA_HOME=$home CUDA_PATH=$home CUDA_ROOT=$home CUDA_TOOLKIT_ROOT_DIR=$home
export PATH="$home/bin:$PATH" CUDA_COMPUTE_CAP=${COMPUTE_CAP:-90}
# The wheels' libraries have a version in their names; the linker looks for names without.
for name in nvrtc curand cublas cublasLt cudart; do
    library=$(find "$home/lib" -name "lib$name.so.*" | head -n 1)
    ln -sf "$library" "$folder/link/lib$name.so"
done
# The driver's library is on the other machine: an empty one of its name stands in for it.
echo | cc -shared -x c - -Wl,-soname,libcuda.so.1 -o "$folder/link/libcuda.so"
export RUSTFLAGS="-L $folder/link -C link-arg=-Wl,--unresolved-symbols=ignore-all"
cargo build --release --locked --features cuda --target-dir "$folder/target" -p onelane-cli -p onelane-bench
for binary in onelane onelane-bench; do
    strip -o "$folder/$binary" "$folder/target/release/$binary"
    ls -l "$folder/$binary"
done
