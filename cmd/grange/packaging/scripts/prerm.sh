#!/bin/sh
# Debian: prerm remove|upgrade …; RPM: how many of the package there will be.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now grange.service grange-seed.service || true
for disk in /dev/ublkb*; do
  [ ! -b "$disk" ] || echo "grange: $disk is in use, and waits for the node: install grange again, or restart this host" >&2
done
