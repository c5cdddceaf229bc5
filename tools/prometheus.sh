#!/bin/sh
# Print the folder that holds `prometheus`, `promtool`, `amtool` and `prometheus-alertmanager`, taking them from Debian's
# packages into a cache if need be; `vmalert` and `victoria-metrics` too, where Debian has them.
# No root is needed, nothing is installed and no service starts. Exit status 1 and the reason where it cannot be had.
set -eu
if command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1 && command -v amtool >/dev/null 2>&1; then
  dirname "$(command -v prometheus)"
  exit 0
fi
cache=${BRIMLINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/brimline}/prometheus
needed=
[ -x "$cache/usr/bin/prometheus" ] && [ -x "$cache/usr/bin/promtool" ] || needed=prometheus
[ -x "$cache/usr/bin/amtool" ] || needed="$needed prometheus-alertmanager"
if [ -z "$needed" ]; then
  echo "$cache/usr/bin"
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
  echo "brimline: prometheus, promtool and amtool are not all on PATH, and this is no Debian to take them from;" \
    "install Prometheus and Alertmanager" >&2
  exit 1
fi
mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$(dirname "$cache")/prometheus.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "brimline: taking Debian's packages of Prometheus and Alertmanager (about 90 MB, once) …" >&2
fetch() {
  packages=$1
  shift
  # shellcheck disable=SC2086
  (cd "$work" && apt-get "$@" download $packages >"$work/log" 2>&1)
}
own=
if ! fetch "$needed"; then
  # No package lists yet, as on a new container: fetch them into a folder of our own.
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  own="-oDir::State::Lists=$work/lists -oDir::Cache=$work/cache -oAPT::Sandbox::User="
  # shellcheck disable=SC2086
  if ! apt-get $own update >"$work/log" 2>&1 || ! fetch "$needed" $own; then
    echo "brimline: Debian's packages ($needed) could not be fetched:" >&2
    tail -n 3 "$work/log" >&2
    exit 1
  fi
fi
# Only some releases of Debian have VictoriaMetrics; the tests that want it are skipped without it.
# shellcheck disable=SC2086
[ -x "$cache/usr/bin/vmalert" ] || fetch victoria-metrics $own || true
for package in "$work"/*.deb; do
  dpkg-deb -x "$package" "$work/root"
done
mkdir -p "$cache"
# Programs that run from there go on with their old file.
cp -a --remove-destination "$work/root/." "$cache/"
echo "$cache/usr/bin"
