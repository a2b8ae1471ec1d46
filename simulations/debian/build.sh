# Makes a Debian disk image in the folder $1, with what is given to qemu beside it.
set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
cd "$1"

# What a server has beyond the minimal system; the list of research traces, so that
# figures compare.
include=linux-image-cloud-amd64,systemd,systemd-sysv,udev,dbus,login,passwd,initramfs-tools,e2fsprogs,iproute2,ifupdown
include+=,isc-dhcp-client,openssh-server,openssh-client,python3,curl,ca-certificates,tzdata,procps,less,cron,zstd
if [ ! -e root ]; then # a finished tree, or none
  rm -rf root.tmp
  debootstrap --variant=minbase --include="$include" bookworm root.tmp
  mv root.tmp root
fi
chroot root passwd -d root
echo '/dev/vda / ext4 defaults 0 1' >root/etc/fstab
echo vm >root/etc/hostname
rm -rf root/var/cache/apt/archives
mkdir -p root/var/cache/apt/archives/partial
cp "$(find root/boot -name 'vmlinuz-*' | sort | tail -n 1)" vmlinuz
cp "$(find root/boot -name 'initrd.img-*' | sort | tail -n 1)" initrd.img

# Fixed identifiers make the same tree give nearly the same disk again.
rm -rf debian.img.tmp
truncate -s 2G debian.img.tmp
mke2fs -q -t ext4 -b 4096 -U 5f0e0000-0000-4000-8000-000000000001 \
  -E hash_seed=5f0e0000-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=0 -d root debian.img.tmp
fallocate -d debian.img.tmp
mv debian.img.tmp debian.img
