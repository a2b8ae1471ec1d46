#!/applets/busybox sh
# The first process of a guest: mounts, loads the modules, runs /guest/run with
# its output on the first virtio port, and writes to the second that it has begun,
# and its exit status.
# With /guest/shell it is a shell on the console instead.
export PATH=/usr/sbin:/usr/bin:/applets HOME=/tmp TMPDIR=/tmp LC_ALL=C
/applets/busybox --install -s /applets
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
ip link set lo up
ulimit -n 65536
# Who waits this long for a device is named on the console with its stack.
echo 20 >/proc/sys/kernel/hung_task_timeout_secs
for module in /modules/*.ko; do
  insmod "$module"
done
mount -t ext4 -o ro /dev/vda /usr

cd /guest || exit
if [ -e shell ]; then
  setsid -c sh /guest/shell </dev/ttyS0 >/dev/ttyS0 2>&1
  reboot -nf
fi
# What the kernel says from now on is told when the program fails.
dmesg -n 8
exec 7>"$(echo /dev/vport*p1)" 8>"$(echo /dev/vport*p2)"
echo begun >&8
sh /guest/run </dev/null >&7 2>&1 7>&- 8>&-
echo $? >&8
# The host ends the machine; nothing here may run on and spoil its last words.
while :; do wait; sleep 60; done
