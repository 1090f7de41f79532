#!/bin/sh
# Writes tests/data/envoy_rules.tsv anew: run it when userspace/api/envoy gains a message, or for a
# newer release of Envoy's API. Needs Go and protoc; neither the build nor a test runs it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
api=github.com/envoyproxy/go-control-plane/envoy
version=v1.32.4
validate=github.com/envoyproxy/protoc-gen-validate@v1.2.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$here/main.go" "$work"
cd "$root/userspace/api"
find envoy/config envoy/extensions envoy/type -name '*.proto' | sort |
  xargs protoc --include_imports --descriptor_set_out="$work/api.pb"
cd "$work"
printf 'module envoyrules\n\ngo 1.22\n' > go.mod
go get "$api@$version" "$validate" > log 2>&1 || { cat log >&2; exit 1; }
go build -o rules . >> log 2>&1 || { cat log >&2; exit 1; }
mkdir -p "$root/tests/data"
{
  echo "# Validation rules of Envoy's API for the messages of userspace/api/envoy."
  echo "# Source: $api $version; written by tests/support/envoy_rules/generate.sh."
  ./rules < api.pb
} > "$root/tests/data/envoy_rules.tsv"
