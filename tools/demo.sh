#!/usr/bin/env bash
# The demo from nothing: sets up .venv if needed, then runs tools/demo.py with your arguments.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/bootstrap.sh"

level=runtime
for argument in "$@"; do
  if [ "$argument" = --export ]; then level=export; fi
done
bootstrap "$level"
cd "$ROOT"
exec "$VENV_PYTHON" tools/demo.py "$@"
