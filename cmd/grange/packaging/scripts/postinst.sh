#!/bin/sh
# Debian: postinst configure [OLD-VERSION]; RPM: how many of the package there are now.
set -e
case "$1" in
configure) upgrade=$2 ;;
1) upgrade= ;;
[0-9]*) upgrade=yes ;;
*) exit 0 ;;
esac
if [ "$1" = configure ] && [ -e /usr/share/debconf/confmodule ]; then
  . /usr/share/debconf/confmodule # which learns the question that a purge asks
  db_stop
fi
systemd-sysusers grange.conf
systemd-tmpfiles --create grange.conf || true # in a root that is being made, without /proc, it is done when that starts
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
udevadm control --reload 2>/dev/null || true
for module in ublk_drv nbd; do
  modprobe -q "$module" 2>/dev/null || true # not every kernel has it
done
udevadm trigger --action=change --sysname-match='ublk*' 2>/dev/null || true
if [ -z "$upgrade" ]; then
  echo "grange: say in /etc/grange/grange.yaml what this node is; then: systemctl enable --now grange"
  exit 0
fi
# A handover: disks stay. A program that would not start as things are is refused, and the old one goes on.
for unit in grange grange-seed; do
  if systemctl --quiet is-active "$unit"; then
    systemctl reload "$unit" || echo "grange: $unit goes on as it was, for the new version would not start: see journalctl -u $unit" >&2
  fi
done
