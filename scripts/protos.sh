#!/usr/bin/env bash
# Generates ragserve/v1 from protos/ (or, with --check, proves that the committed stubs are fresh).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
bin=$(dirname "$python")
out=.
if [ "${1:-}" = "--check" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
mkdir -p "$out/ragserve/v1"
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I protos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  protos/ragserve/v1/*.proto
if [ "$out" != "." ]; then
  for file in "$out"/ragserve/v1/*; do
    cmp -s "$file" "ragserve/v1/$(basename "$file")" || {
      echo "ragserve/v1/$(basename "$file") is stale: run 'make protos' and commit the result" >&2
      exit 1
    }
  done
  echo "stubs are fresh"
fi
