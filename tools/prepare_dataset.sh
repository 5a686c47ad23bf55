#!/usr/bin/env bash
# prepare_dataset.py from nothing: sets up .venv if needed, then runs it with your arguments.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/bootstrap.sh"

bootstrap runtime
exec "$VENV_PYTHON" "$ROOT/tools/prepare_dataset.py" "$@"
