#!/bin/sh
# Debian: postrm remove|purge|…; RPM: how many of the package there are left. What volumes
# hold, and the node's place in the mesh, goes only where somebody has said so: to debconf,
# whose answer is no until then, or by GRANGE_PURGE_DATA=yes.
set -e
case "$1" in
remove | 0 | purge) [ ! -d /run/systemd/system ] || systemctl daemon-reload ;;
esac
[ "$1" = purge ] || exit 0
data="/var/lib/grange /var/lib/private/grange-seed"
found=
for dir in $data; do
  [ ! -d "$dir" ] || [ -z "$(ls -A "$dir")" ] || found="$found $dir"
done
answer=$GRANGE_PURGE_DATA
if [ -e /usr/share/debconf/confmodule ]; then
  . /usr/share/debconf/confmodule
  if [ -n "$found" ] && [ -z "$answer" ]; then
    db_fset grange/purge-data seen false || true
    db_input critical grange/purge-data || true
    db_go || true
    db_get grange/purge-data && [ "$RET" = true ] && answer=yes
  fi
  db_purge
  db_stop
fi
if [ "$answer" = yes ]; then
  # shellcheck disable=SC2086 # names without spaces
  rm -rf --one-file-system $data
  rm -f /var/lib/grange-seed
elif [ -n "$found" ]; then
  echo "grange: the data stay:$found" >&2
fi
rmdir --ignore-fail-on-non-empty /var/lib/grange /etc/grange 2>/dev/null || true
