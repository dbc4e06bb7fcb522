#!/bin/bash -eu
# Builds every fuzz target of the package for OSS-Fuzz, which runs this in the image that
# the Dockerfile makes. The targets use helpers of other test files; version 2 of the tool
# builds the package together with its tests.
export GOTOOLCHAIN=local
for target in $(grep -ho '^func Fuzz[A-Za-z0-9]*' ./*_test.go | cut -d' ' -f2); do
	compile_native_go_fuzzer_v2 github.com/weir-p2p/rcmgr "$target" "$target"
done
