#!/usr/bin/env bash
# The demo from nothing: sets up .venv if needed, then runs tools/demo.py with your arguments.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/bootstrap.sh"

bootstrap runtime
cd "$ROOT"
exec "$VENV_PYTHON" tools/demo.py "$@"
