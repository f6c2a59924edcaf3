#!/usr/bin/env bash
# Builds and runs a C program with nothing but what pkg-config says about the package in a library folder.
set -euo pipefail
pkg_config=$1 compiler=$2 libdir=$3 source=$4 program=$5

export PKG_CONFIG_PATH=$libdir/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
read -ra cflags <<<"$("$pkg_config" --cflags popnorm)"
read -ra libs <<<"$("$pkg_config" --libs popnorm)"
"$compiler" -std=c11 -O1 "${cflags[@]}" "$source" "${libs[@]}" -lm -o "$program"
LD_LIBRARY_PATH=$libdir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$program"
