#!/bin/sh
# Write the pinned requirements of the image anew, with the hashes of all platforms: after a change of dependencies in
# pyproject.toml, or for newer versions (`tools/pin_image.sh --upgrade`). Needs `uv` (pip install uv).
set -eu
cd "$(dirname "$0")/../deploy/docker"
export UV_CUSTOM_COMPILE_COMMAND=tools/pin_image.sh
# From 3.11 on, so that the tests can take the same steps with the Python that they have.
pin() {
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url "$@"
}
pin "$@" --extra kubernetes ../../pyproject.toml -o requirements.txt
pin "$@" --extra ab ../../pyproject.toml -o requirements-ab.txt
# What builds the wheel.
python3 -c '
import pathlib, tomllib
print(*tomllib.loads(pathlib.Path("../../pyproject.toml").read_text())["build-system"]["requires"], sep="\n")
' | pin "$@" - -o build-requirements.txt
