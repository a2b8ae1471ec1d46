#!/bin/bash
# What systemctl does with the unit grange, where no systemd runs: it starts the unit's
# ExecStart as the unit's user, with its environment, and signals it. Capabilities it
# leaves out, for they are for block devices alone.
set -euo pipefail
unit=/etc/systemd/system/grange.service
pid=/run/grange.pid

setting() { sed -n "s/^$1=//p" "$unit"; }

running() { [ -s "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; }

start() {
  ! running || return 0
  local file user
  user=$(setting User)
  file=$(setting EnvironmentFile)
  [ ! -r "${file#-}" ] || { set -a; . "${file#-}"; set +a; }
  read -ra command <<<"$(setting ExecStart)"
  HOME=/var/lib/$user setpriv --reuid "$user" --regid "$user" --groups "$user,$(setting SupplementaryGroups)" "${command[@]}" >>/var/log/grange.log 2>&1 </dev/null &
  echo $! >"$pid"
}

stop() {
  ! running || kill -TERM "$(cat "$pid")"
  while running; do sleep 0.1; done
}

for last; do :; done
case "$1" in
daemon-reload) ;;
enable) [ "${2:-}" != --now ] || start ;;
start) start ;;
stop) stop ;;
restart) stop; start ;;
reload) kill -USR2 "$(cat "$pid")" ;;
kill) kill -KILL "$(cat "$pid")"; while running; do sleep 0.1; done ;;
*) echo "systemctl $*: not here" >&2; exit 1 ;;
esac
