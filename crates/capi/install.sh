#!/usr/bin/env bash
# install.sh BUILT PREFIX [so|dylib]: lays libonelane, its headers, pkg-config and CMake files under PREFIX.
set -euo pipefail
built=$1 prefix=$2 kind=${3:-so}
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -1)
mkdir -p "$prefix"/{include/onelane,lib/pkgconfig,lib/cmake/onelane,share/onelane}
prefix=$(cd "$prefix" && pwd)
install -m 644 "$here"/include/*.h "$here"/include/*.hpp "$prefix/include/onelane/"
install -m 644 "$here"/torch/MPSBatchQueue.cpp "$here"/torch/MPSBatchQueue.mm "$prefix/share/onelane/"
install -m 644 "$built/libonelane_capi.a" "$prefix/lib/libonelane.a"
if [ "$kind" = dylib ]; then
    install -m 755 "$built/libonelane_capi.dylib" "$prefix/lib/libonelane.1.dylib"
    ln -sf libonelane.1.dylib "$prefix/lib/libonelane.dylib"
    shared=libonelane.1.dylib private="-lSystem -lc -lm"
else
    install -m 755 "$built/libonelane_capi.so" "$prefix/lib/libonelane.so.1"
    ln -sf libonelane.so.1 "$prefix/lib/libonelane.so"
    shared=libonelane.so.1 private="-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"
fi
sed -e "s|@PREFIX@|$prefix|; s|@VERSION@|$version|; s|@PRIVATE@|$private|" \
    "$here/install/onelane.pc.in" > "$prefix/lib/pkgconfig/onelane.pc"
sed -e "s|@SHARED@|$shared|; s|@PRIVATE@|$private|" \
    "$here/install/onelaneConfig.cmake.in" > "$prefix/lib/cmake/onelane/onelaneConfig.cmake"
sed -e "s|@VERSION@|$version|" \
    "$here/install/onelaneConfigVersion.cmake.in" > "$prefix/lib/cmake/onelane/onelaneConfigVersion.cmake"
