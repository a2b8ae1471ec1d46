#!/bin/sh
# Makes a folder of the newest cloud kernel of a Debian suite whose version begins with
# a prefix, as vmlinuz and the modules that tests use.
# Usage: kernel.sh FOLDER SUITE PREFIX
#
# The packages come from the mirror that this machine installs from, through apt with a
# state of its own: nothing is installed, and root is not needed.
set -eu
dir=$1
suite=$2
prefix=$3
modules='loop nbd ublk_drv virtio_blk xfs'

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
echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$tmp/sources.list"

private() {
  command=$1
  shift
  "$command" -q -o Dir::State::lists="$tmp/lists" -o Dir::State::status="$tmp/status" -o Dir::Cache="$tmp" \
    -o Dir::Etc::sourcelist="$tmp/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User= "$@"
}
private apt-get update >&2
version=$(private apt-cache pkgnames "linux-image-$prefix" | sed -n 's/^linux-image-\([0-9].*-cloud-amd64\)$/\1/p' | sort -V | tail -n 1)
[ -n "$version" ] || { echo "$suite has no linux-image-$prefix*-cloud-amd64 any more" >&2; exit 1; }
# Newer ones are in parts.
packages=$(private apt-cache pkgnames linux- | grep -xE "linux-(image|binary|modules)-$(echo "$version" | sed 's/[.+]/\\&/g')" | sed 's/$/:amd64/')
# shellcheck disable=SC2086 # they are words
(cd "$tmp" && private apt-get download $packages >&2)

for package in "$tmp"/linux-*.deb; do
  dpkg-deb -x "$package" "$tmp/root"
done
rm -rf "$dir.new"
mkdir "$dir.new"
find "$tmp/root" -name 'vmlinuz*' -exec mv {} "$dir.new/vmlinuz" \;
[ -s "$dir.new/vmlinuz" ] || { echo "$packages: no kernel is in them" >&2; exit 1; }
take() {
  for name in "$@"; do
    find "$tmp/root" -name "$name.ko.xz" -exec xz -dc {} \; >"$dir.new/$name.ko"
    [ -s "$dir.new/$name.ko" ] || { echo "$packages: no module $name is in them" >&2; exit 1; }
    # Guests load in the order of the names, which is right for those that these need.
    needs=$(grep -ao 'depends=[a-z0-9_,]*' "$dir.new/$name.ko" | head -n 1 | cut -d= -f2 | tr , ' ')
    # shellcheck disable=SC2086 # they are words
    take $needs
  done
}
# shellcheck disable=SC2086 # they are words
take $modules
mv "$dir.new" "$dir"
