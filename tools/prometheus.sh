#!/bin/sh
# Print the folder that holds `prometheus` and `promtool`, taking them from Debian's package into a cache if need be.
# No root is needed, nothing is installed and no service starts. Exit status 1 and the reason where it cannot be had.
set -eu
if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; then
  dirname "$(command -v prometheus)"
  exit 0
fi
cache=${BRIMLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/brimline}/prometheus
if [ -x "$cache/usr/bin/prometheus" ] && [ -x "$cache/usr/bin/promtool" ]; then
  echo "$cache/usr/bin"
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
  echo "brimline: prometheus and promtool are not on PATH, and this is no Debian to take them from; install Prometheus" >&2
  exit 1
fi
mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$(dirname "$cache")/prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "brimline: taking Prometheus from Debian's package (about 60 MB, once) …" >&2
fetch() { (cd "$work" && apt-get "$@" download prometheus >"$work/log" 2>&1); }
if ! fetch; then
  # No package lists yet, as on a new container: fetch them into a folder of our own.
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  own="-oDir::State::Lists=$work/lists -oDir::Cache=$work/cache -oAPT::Sandbox::User="
  # shellcheck disable=SC2086
  if ! apt-get $own update >"$work/log" 2>&1 || ! fetch $own; then
    echo "brimline: Debian's prometheus package could not be fetched:" >&2
    tail -n 3 "$work/log" >&2
    exit 1
  fi
fi
dpkg-deb -x "$work"/prometheus_*.deb "$work/root"
rm -rf "$cache"
mv "$work/root" "$cache"
echo "$cache/usr/bin"
