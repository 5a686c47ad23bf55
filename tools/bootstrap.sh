# shellcheck shell=bash
# Sourced by the other scripts. Makes .venv at the root of the repository and keeps it current:
#
#   bootstrap runtime    what the demo and training need
#   bootstrap export     the same, and what exporting needs
#   bootstrap test       all of it, and what the tests need
#
# A stamp in .venv, written last, holds a hash of everything that decides what is installed: a second
# run compares hashes and touches neither network nor packages. After a run that was killed while it
# changed .venv (.venv.unfinished is there), the next one makes .venv again.
# PYTHON=/path/to/python chooses the interpreter. pip's index settings are respected.

ROOT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=$ROOT/.venv
VENV_PYTHON=$VENV/bin/python
UNFINISHED=$VENV.unfinished
INSTALL_LOG=$VENV/install.log
UV=

if [ -z "${OMP_NUM_THREADS:-}" ]; then
  OMP_NUM_THREADS=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  export OMP_NUM_THREADS
fi

note() {
  printf '[tr_det %4ds] %s\n' "$SECONDS" "$*" >&2
}

fail() {
  note "error: $*"
  exit 1
}

# --- stamps -----------------------------------------------------------------------------------------

hash_of_stdin() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

requirements_of() { # runtime|export|test
  if [ "$1" = runtime ]; then printf 'requirements.txt\n'; else printf 'requirements-%s.txt\n' "$1"; fi
}

wanted_stamp() { # runtime|export|test
  local files=(requirements.txt requirements-detectron2.txt setup.py tools/bootstrap.sh)
  if [ "$1" != runtime ]; then files+=(requirements-export.txt "$(requirements_of "$1")"); fi
  {
    printf '%s\n' "$ROOT"
    cat "$VENV/pyvenv.cfg"
    (cd "$ROOT" && cat "${files[@]}" tools/install/*.py)
  } 2>/dev/null | hash_of_stdin
}

is_fresh() { # runtime|export|test
  local stamp=$VENV/tr_det-$1.stamp
  [ -x "$VENV_PYTHON" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp "$1")" ]
}

write_stamp() { # runtime|export|test
  wanted_stamp "$1" >"$VENV/tr_det-$1.stamp.part"
  mv "$VENV/tr_det-$1.stamp.part" "$VENV/tr_det-$1.stamp"
}

# --- running a step ---------------------------------------------------------------------------------

# Say now and then that a long step is still running; ends with the script, however that ends.
tick() { # name of the step
  local began=$SECONDS
  while sleep 1 && kill -0 "$$" 2>/dev/null; do
    if [ -t 2 ]; then
      printf '\r[tr_det %4ds] %s ... ' "$SECONDS" "$1" >&2
    elif [ $(((SECONDS - began) % 30)) -eq 29 ]; then
      note "$1 ... still running"
    fi
  done
}

# Run a command with its output in the log and report its time. Returns the command's status.
attempt() { # name of the step, command...
  local what=$1 began=$SECONDS status=0 ticker
  shift
  note "$what"
  tick "$what" </dev/null >/dev/null 9<&- &
  ticker=$!
  printf '\n--- %s\n' "$*" >>"$INSTALL_LOG"
  "$@" >>"$INSTALL_LOG" 2>&1 </dev/null || status=$?
  { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
  if [ "$status" -eq 0 ] && [ $((SECONDS - began)) -ge 3 ]; then
    note "  done in $((SECONDS - began)) s"
  fi
  return "$status"
}

# The same for a step that must work: if it fails, show the end of its output and stop.
step() { # name of the step, command...
  attempt "$@" && return
  stop_after "$1"
}

stop_after() { # name of the step that failed
  rm -f "$UNFINISHED" # failed, but not interrupted: the next run can go on from here
  grep -v -e '^WARNING' -e '^--- ' -e '^ *$' "$INSTALL_LOG" | tail -n 6 | cut -c 1-240 >&2 || true
  fail "$1: failed (is the package index reachable?); all of the output is in $INSTALL_LOG"
}

# --- the interpreter --------------------------------------------------------------------------------

is_supported() { # python
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

version_of() { # python
  "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null
}

pick_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or 3.12"
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3 python; do
    if command -v "$candidate" >/dev/null && is_supported "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "Python 3.11 or 3.12 is needed, but none is on PATH; set PYTHON=/path/to/python3.11"
}

make_venv() {
  local python
  python=$(pick_python)
  : >"$UNFINISHED"
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    note "making .venv with Python $(version_of "$python")"
    "$python" -m venv --clear "$VENV" || fail "$python -m venv failed"
  elif command -v uv >/dev/null; then
    note "making .venv with Python $(version_of "$python") and uv"
    uv venv --quiet --clear --seed --python "$python" "$VENV" || fail "uv venv failed"
  else
    fail "$python lacks venv or ensurepip; on Debian and Ubuntu: apt install python3-venv"
  fi
}

has_pip() {
  "$VENV_PYTHON" -m pip --version >/dev/null 2>&1
}

ensure_venv() {
  if [ -e "$UNFINISHED" ]; then
    note "the last run was interrupted; making .venv again"
  elif [ -x "$VENV_PYTHON" ]; then
    is_supported "$VENV_PYTHON" ||
      fail ".venv has Python $(version_of "$VENV_PYTHON"), but 3.11 or 3.12 is needed; remove .venv"
    if "$VENV/bin/uv" --version >/dev/null 2>&1 || has_pip; then return; fi
    note ".venv is incomplete; making it again"
  fi
  make_venv
}

# --- packages ---------------------------------------------------------------------------------------

# uv does not read pip's settings: hand the index over, unless uv has its own.
share_pip_index() {
  local index
  if [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then return; fi
  index=${PIP_INDEX_URL:-$("$VENV_PYTHON" -m pip config list 2>/dev/null |
    sed -n "s/^global\.index-url='\(.*\)'\$/\1/p" || true)}
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
  if [ -n "${PIP_EXTRA_INDEX_URL:-}" ] && [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ]; then
    export UV_INDEX=$PIP_EXTRA_INDEX_URL
    export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # as pip: the pins decide
  fi
}

find_uv() {
  UV=$VENV/bin/uv
  if "$UV" --version >/dev/null 2>&1; then return; fi
  if has_pip && attempt "installing uv" "$VENV_PYTHON" -m pip install --retries 2 \
    --disable-pip-version-check --force-reinstall -c "$ROOT/requirements-detectron2.txt" uv &&
    "$UV" --version >/dev/null 2>&1; then return; fi
  UV=$(command -v uv || true)
  if [ -z "$UV" ]; then note "uv can't be installed here; using pip, which takes longer"; fi
}

install_packages() { # name of the step, arguments of `pip install`...
  local what=$1
  shift
  if [ -n "$UV" ]; then
    local constraint=(--build-constraints "$ROOT/requirements-detectron2.txt")
    if attempt "$what" "$UV" pip install --python "$VENV_PYTHON" "${constraint[@]}" "$@"; then
      return
    fi
    has_pip || stop_after "$what"
    note "uv could not do it; trying pip"
  fi
  step "$what" "$VENV_PYTHON" -m pip install --disable-pip-version-check --progress-bar off "$@"
}

install_runtime() { # requirements file
  install_packages "installing the packages of $1 (torch is large)" \
    -r "$ROOT/$1" -r "$ROOT/requirements-detectron2.txt"
  step "installing Detectron2" "$VENV_PYTHON" "$ROOT/tools/install/detectron2.py"
  install_packages "installing tr_det" --no-deps --no-build-isolation -e "$ROOT"
}

# --- all of it --------------------------------------------------------------------------------------

take_turns() { # two runs at once must not install into the same .venv
  command -v flock >/dev/null || return 0
  exec 9<"$ROOT/tools/bootstrap.sh"
  flock -n 9 && return
  note "another run is setting up .venv; waiting for it"
  flock 9
}

bootstrap() { # runtime|export|test
  local level=$1 requirements
  requirements=$(requirements_of "$level")
  if is_fresh "$level"; then return; fi
  # uv turns Ctrl-C into an exit status, after which bash would go on with the next step
  trap 'note "interrupted"; exit 130' INT TERM
  take_turns
  if ! is_fresh "$level"; then
    ensure_venv
    : >"$UNFINISHED"
    : >"$INSTALL_LOG"
    rm -f "$VENV/tr_det-export.stamp" "$VENV/tr_det-test.stamp"
    share_pip_index
    find_uv
    if is_fresh runtime; then
      install_packages "installing the packages of $requirements" -r "$ROOT/$requirements"
    else
      rm -f "$VENV/tr_det-runtime.stamp"
      install_runtime "$requirements"
      write_stamp runtime
    fi
    if [ "$level" != runtime ]; then write_stamp export; fi
    if [ "$level" = test ]; then write_stamp test; fi
    rm -f "$UNFINISHED"
    note ".venv is ready"
  fi
  exec 9<&- # let others in
  trap - INT TERM
}
