#!/usr/bin/env bash
# Format, lint, types and tests, from nothing: sets up .venv if needed. With arguments, only pytest
# runs, with these arguments (-n auto --cov for the coverage). The exit status is the worst of all.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/bootstrap.sh"

bootstrap test
cd "$ROOT"
# The tests start many processes; where no bytecode may be kept (in images of containers), each of
# them compiles torch and Detectron2 again.
unset PYTHONDONTWRITEBYTECODE
if [ "$#" -gt 0 ]; then exec "$VENV_PYTHON" -m pytest "$@"; fi

worst=0
check() { # name, command...
  local status=0
  note "$1"
  "${@:2}" || status=$?
  if [ "$status" -ne 0 ]; then note "$1: failed"; fi
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
}

check "format" "$VENV_PYTHON" -m ruff format --check .
check "lint" "$VENV_PYTHON" -m ruff check .
check "types" "$VENV_PYTHON" -m mypy
export OMP_NUM_THREADS=1 # a process for each core
check "tests" "$VENV_PYTHON" -m pytest -n auto --maxprocesses 8 --dist worksteal
exit "$worst"
