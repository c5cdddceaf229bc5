#!/bin/sh
# Prepare this clone: a virtual environment with the project in it. `tools/setup.sh [dev]`.
# What the machine lacks is named in one message with the one command that installs it.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}

missing=""
command -v make >/dev/null 2>&1 || missing="$missing make"
command -v git >/dev/null 2>&1 || missing="$missing git"
if ! command -v python3 >/dev/null 2>&1; then
  missing="$missing python3 python3-venv"
elif ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
  missing="$missing python3-venv"
fi
if [ "$extra" = dev ]; then
  command -v gcc >/dev/null 2>&1 || missing="$missing gcc"
  if command -v gcc >/dev/null 2>&1; then
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -xc - -o /dev/null 2>/dev/null \
      || missing="$missing libc6-dev"
  else
    [ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
  fi
fi
if [ -n "$missing" ]; then
  echo "brimline: this machine lacks:$missing" >&2
  echo "brimline: install with:  sudo apt-get update && sudo apt-get install -y$missing" >&2
  exit 2
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "brimline: Python 3.11 or newer is needed; python3 here is $(python3 --version 2>&1)" >&2
  exit 2
}

stamp=.venv/.brimline-${extra:-run}
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  echo "brimline: installing packages into .venv …" >&2
  if [ -n "$extra" ]; then wanted=".[$extra]"; else wanted="."; fi
  .venv/bin/python -m pip install -q --disable-pip-version-check -e "$wanted"
  touch "$stamp"
  # The larger set holds the smaller one.
  [ -z "$extra" ] || touch .venv/.brimline-run
fi
