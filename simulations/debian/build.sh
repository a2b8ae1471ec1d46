# Makes a Debian disk image of the kind $2 in the folder $1: server, with the kernel that is
# given to qemu beside it, or cloud or cluster, which boot by themselves.
set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
cd "$1"
kind=$2

# What a server has beyond the minimal system; the list of research traces, so that
# figures compare.
include=linux-image-cloud-amd64,systemd,systemd-sysv,udev,dbus,login,passwd,initramfs-tools,e2fsprogs,iproute2,ifupdown
include+=,isc-dhcp-client,openssh-server,openssh-client,python3,curl,ca-certificates,tzdata,procps,less,cron,zstd
case $kind in
cloud) include+=,grub-pc-bin,grub-common,fdisk,cloud-init,python3-cffi-backend,cloud-guest-utils,cloud-initramfs-growroot,sudo,apparmor,unattended-upgrades,netplan.io ;;
cluster) include+=,grub-pc-bin,grub-common,fdisk,containerd,runc,containernetworking-plugins,iptables,nftables,conntrack,ipset,socat,ethtool,kubernetes-client,etcd-server,etcd-client ;;
esac
if [ ! -e root ]; then # a finished tree, or none; what is said to depend on virtual packages is named itself
  rm -rf root.tmp
  debootstrap --variant=minbase --include="$include" bookworm root.tmp
  mv root.tmp root
fi
chroot root passwd -d root
echo vm >root/etc/hostname
rm -rf root/var/cache/apt/archives
mkdir -p root/var/cache/apt/archives/partial

# Fixed identifiers make the same tree give nearly the same disk again.
fs=5f0e0000-0000-4000-8000-000000000001
format() {
  mke2fs -q -F -t ext4 -b 4096 -U $fs -E "hash_seed=5f0e0000-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=0$1" -d root debian.img.tmp $2
  fallocate -d debian.img.tmp
  mv debian.img.tmp debian.img
}
rm -rf debian.img.tmp
truncate -s 2G debian.img.tmp
if [ "$kind" = server ]; then
  echo '/dev/vda / ext4 defaults 0 1' >root/etc/fstab
  cp "$(find root/boot -name 'vmlinuz-*' | sort | tail -n 1)" vmlinuz
  cp "$(find root/boot -name 'initrd.img-*' | sort | tail -n 1)" initrd.img
  format "" ""
  exit
fi

echo "UUID=$fs / ext4 defaults 0 1" >root/etc/fstab
mkdir -p root/boot/grub
version=$(basename "$(find root/boot -name 'vmlinuz-*' | sort | tail -n 1)" | sed s/vmlinuz-//)
cat >root/boot/grub/grub.cfg <<END
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
menuentry Debian {
  search --no-floppy --fs-uuid --set=root $fs
  linux /boot/vmlinuz-$version root=UUID=$fs ro console=ttyS0 net.ifnames=0
  initrd /boot/initrd.img-$version
}
END
case $kind in
cloud)
  mkdir -p root/var/lib/cloud/seed/nocloud
  echo 'datasource_list: [NoCloud, None]' >root/etc/cloud/cloud.cfg.d/90_seed.cfg
  echo 'instance-id: vm-1' >root/var/lib/cloud/seed/nocloud/meta-data
  cat >root/var/lib/cloud/seed/nocloud/user-data <<'END'
#cloud-config
write_files:
  - {path: /etc/motd, content: "hello\n"}
runcmd:
  - [sh, -c, "echo made >/run/made"]
END
  ;;
cluster) # what an agent does when it starts; the prompt comes after it
  cat >root/usr/local/sbin/node-start <<'END'
#!/bin/sh -e
for chain in KUBE-SERVICES KUBE-NODEPORTS KUBE-POSTROUTING KUBE-FORWARD; do iptables -w -N $chain; done
iptables -w -A FORWARD -j KUBE-FORWARD
ip link add cni0 type bridge && ip addr add 10.42.0.1/24 dev cni0 && ip link set cni0 up
ctr namespaces create k8s.io
ctr --namespace k8s.io images ls
conntrack -L >/dev/null 2>&1 || true
kubectl version --client
ETCDCTL_API=3 etcdctl put /registry/nodes/vm ready
END
  chmod 755 root/usr/local/sbin/node-start
  cat >root/etc/systemd/system/node-start.service <<'END'
[Unit]
Requires=containerd.service etcd.service
After=containerd.service etcd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/node-start
[Install]
WantedBy=multi-user.target
END
  mkdir -p root/etc/systemd/system/serial-getty@ttyS0.service.d
  printf '[Unit]\nAfter=node-start.service\n' >root/etc/systemd/system/serial-getty@ttyS0.service.d/after.conf
  printf 'overlay\nbr_netfilter\n' >root/etc/modules-load.d/node.conf
  chroot root systemctl enable containerd etcd node-start
  ;;
esac

# A table of partitions, GRUB's first part in the MBR, its core in a partition of its own.
core=2048 data=4096 # sectors
chroot root grub-mkimage -O i386-pc -o /core.img -p '(hd0,gpt2)/boot/grub' biosdisk part_gpt ext2 normal linux search search_fs_uuid serial terminal configfile
mv root/core.img .
truncate -s 2G root/disk.tmp
printf 'label: gpt\nlabel-id: 5F0E0000-0000-4000-8000-000000000003\nstart=%s, size=%s, type=21686148-6449-6E6F-744E-656564454649\nstart=%s, type=linux\n' \
  $core $((data - core)) $data | chroot root sfdisk -q /disk.tmp
mv root/disk.tmp debian.img.tmp
le64() { printf "$(printf '%016x' "$1" | sed 's/\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)\(..\)/\\x\8\\x\7\\x\6\\x\5\\x\4\\x\3\\x\2\\x\1/')"; }
dd if=root/usr/lib/grub/i386-pc/boot.img of=debian.img.tmp bs=1 count=440 conv=notrunc status=none
le64 $core | dd of=debian.img.tmp bs=1 seek=92 conv=notrunc status=none        # where the core is
le64 $((core + 1)) | dd of=core.img bs=1 seek=500 conv=notrunc status=none     # and the rest of it
dd if=core.img of=debian.img.tmp bs=512 seek=$core conv=notrunc status=none
rm core.img
format ",offset=$((data * 512))" $(((2 * 1024 * 1024 * 2 - data - 2048) / 8))
