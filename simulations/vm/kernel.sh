#!/bin/sh
# Makes a folder of Debian's newest 6.12 cloud kernel, as vmlinuz and the modules
# that tests use. Usage: kernel.sh FOLDER
#
# The package comes from bookworm-backports on the mirror that this machine
# installs from, through apt with a state of its own: nothing is installed, and
# root is not needed.
set -eu
dir=$1
modules='loop nbd ublk_drv virtio_blk'

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$tmp/lists/partial" "$tmp/archives/partial"
: >"$tmp/status" # as if nothing were installed

release=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016 # apt fills them in
mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v release="$release" '$1 == release && $2 == "main" { print $3; exit }')
[ -n "$mirror" ] || { echo "apt's sources name no mirror for $release main: the kernel package comes from there" >&2; exit 1; }
echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" >"$tmp/sources.list"

private() {
  command=$1
  shift
  "$command" -q -o Dir::State::lists="$tmp/lists" -o Dir::State::status="$tmp/status" -o Dir::Cache="$tmp" \
    -o Dir::Etc::sourcelist="$tmp/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User= "$@"
}
private apt-get update >&2
package=$(private apt-cache pkgnames linux-image-6.12. | grep -E 'cloud-amd64$' | sort -V | tail -n 1)
[ -n "$package" ] || { echo "bookworm-backports has no linux-image-6.12.*-cloud-amd64 any more" >&2; exit 1; }
(cd "$tmp" && private apt-get download "$package:amd64" >&2)

dpkg-deb --fsys-tarfile "$tmp"/linux-image-*.deb | tar -x -C "$tmp" --wildcards './boot/vmlinuz-*' './lib/modules/*.ko.xz'
rm -rf "$dir.new"
mkdir "$dir.new"
mv "$tmp"/boot/vmlinuz-* "$dir.new/vmlinuz"
for name in $modules; do
  find "$tmp/lib" -name "$name.ko.xz" -exec xz -dc {} \; >"$dir.new/$name.ko"
  [ -s "$dir.new/$name.ko" ] || { echo "$package has no module $name" >&2; exit 1; }
done
mv "$dir.new" "$dir"
