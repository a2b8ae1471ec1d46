# Boots systemd, with the root file system of a Debian that stays as it is, in namespaces of its own:
# boot.sh ROOT FOLDER SHARED. What the machine writes is in memory, and SHARED at its /packages.
set -euo pipefail
root=$1 dir=$2 shared=$3
control=/sys/fs/cgroup
[ ! -d $control/unified ] || control=$control/unified
own=$control/grange-packages-$$
mkdir "$own"
echo $$ >"$own/cgroup.procs"
exec unshare --mount --uts --ipc --pid --net --cgroup --fork --kill-child --propagation private bash -euc '
root=$1 dir=$2 shared=$3
hostname packages
ip link set lo up
mount -t tmpfs machine "$dir"
mkdir "$dir"/{upper,work,root}
mount -t overlay machine -o lowerdir="$root",upperdir="$dir/upper",workdir="$dir/work" "$dir/root"
cd "$dir/root"
mkdir -p packages
mount --bind "$shared" packages
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -sf /dev/null etc/systemd/system/console-getty.service
for n in null zero full random urandom tty fuse; do cp -a /dev/$n dev/$n; done
chmod 666 dev/fuse
ln -s /proc/self/fd dev/fd
: >dev/console
pivot_root . mnt
mount --make-rprivate /mnt
umount -l /mnt
mount --make-rshared / # as systemd leaves it on a host of its own
exec env -i container=grange PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --show-status=0 --log-target=journal systemd.unit=multi-user.target
' machine "$root" "$dir" "$shared"
