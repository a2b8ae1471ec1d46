package disks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/soak"
)

// TestDiskOutlivesItsNode writes to a file system on a volume's disk while the
// node is killed, and while it hands over to itself.
func TestDiskOutlivesItsNode(t *testing.T) {
	n := begin(t)
	if out := n.must(t, "doctor"); !strings.Contains(out, "volumes are served as block devices") {
		t.Errorf("doctor says: %s", out)
	}
	device := n.must(t, "volume", "create", "data", "--size", "128MiB")
	if !strings.HasPrefix(device, "/dev/ublkb") {
		t.Fatalf("the device is %s", device)
	}
	if out := n.must(t, "volume", "create", "other", "--size", "1MiB", "--transport", "nbd"); !strings.HasPrefix(out, "nbd+unix://") {
		t.Errorf("over nbd the device is %s", out)
	}
	shell(t, "mkfs.ext4 -q "+device+" && mount "+device+" /mnt")
	// Not much at a time: the journal is in memory here, and keeps it all.
	work := exec.Command("bash", "-euc", `
		while ! [ -e /tmp/enough ]; do
			head -c 300000 /dev/urandom >/tmp/file
			cp /tmp/file /mnt && sync && echo 1 >/proc/sys/vm/drop_caches && cmp /tmp/file /mnt/file
		done`)
	work.Stdout, work.Stderr = t.Output(), t.Output()
	if err := work.Start(); err != nil {
		t.Fatal(err)
	}
	for range soak.Rounds(20) {
		if err := n.kill(); err != nil {
			t.Error(err)
		}
		n = begin(t)
		if err := n.handOver(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, "touch /tmp/enough")
	if err := work.Wait(); err != nil {
		t.Errorf("the work on the file system: %v", err)
	}
	if out, err := n.run(t.Context(), "volume", "detach", "data"); err == nil || !strings.Contains(out, "mounted on /mnt") {
		t.Errorf("detached while mounted: %v, %s", err, out)
	}
	shell(t, "umount /mnt && e2fsck -fn "+device)
	n.must(t, "volume", "detach", "data")
	if out := shell(t, "dmesg | grep 'I/O error' || true; ls /dev/ublkb* 2>/dev/null || true"); out != "" {
		t.Errorf("in the end: %s", out)
	}
	if again := n.must(t, "volume", "attach", "data"); again != device {
		t.Errorf("attached again it is %s, was %s", again, device)
	}
	n.must(t, "volume", "rm", "data")
	n.must(t, "volume", "rm", "other")
}

// TestDisksStopLast reads a disk while its node, which hands over, waits in vain for the
// rest of a request.
func TestDisksStopLast(t *testing.T) {
	n := begin(t)
	device := n.must(t, "volume", "create", "last", "--size", "1MiB")
	conn, err := n.keepWaiting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- n.handOver(t.Context()) }()
	gone := func() bool {
		_, err := n.run(t.Context(), "status")
		return err != nil
	}
	if err := n.until(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	shell(t, "dd if="+device+" of=/dev/null bs=4096 count=1 iflag=direct")
	if n.says("stopped") > 0 {
		t.Error("the disk was read when the node had stopped")
	}
	if err := conn.Close(); err != nil { // it has waited long enough
		t.Error(err)
	}
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	n.must(t, "volume", "rm", "last")
}

// TestStopLeavesWhatIsInUse stops a node with one disk mounted and one idle.
func TestStopLeavesWhatIsInUse(t *testing.T) {
	n := begin(t)
	used, idle := n.must(t, "volume", "create", "used", "--size", "32MiB"), n.must(t, "volume", "create", "idle", "--size", "1MiB")
	shell(t, "mkfs.ext4 -q "+used+" && mount "+used+" /mnt && cp /init /mnt")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{used: true, idle: false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
	n = begin(t)
	shell(t, "sync && echo 3 >/proc/sys/vm/drop_caches && cmp /init /mnt/init && umount /mnt && blockdev --getsize64 "+idle)
	// Disks of volumes that are not there any more are swept.
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = begin(t)
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.data, "volumes")); err != nil {
		t.Fatal(err)
	}
	begin(t)
	if out := shell(t, "ls /dev/ublk[bc]* 2>/dev/null || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// TestDiskWaitsForItsDriver starts the node of a mounted disk without the right to
// serve it.
func TestDiskWaitsForItsDriver(t *testing.T) {
	n := begin(t)
	device := n.must(t, "volume", "create", "kept", "--size", "32MiB")
	shell(t, "mkfs.ext4 -q "+device+" && mount "+device+" /mnt && cp /init /mnt")
	if out := n.must(t, "doctor"); strings.Contains(out, "CAP_SYS_RESOURCE") {
		t.Errorf("the doctor of root says: %s", out)
	}
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	n = beginAs(t, setpriv(t, "--bounding-set=-sys_admin,-sys_resource --inh-caps=-sys_admin,-sys_resource"), founded(t))
	if out := n.must(t, "volume", "show", "kept"); !strings.Contains(out, "failed") || !strings.Contains(out, device) || !strings.Contains(out, "CAP_SYS_ADMIN") {
		t.Errorf("without the right to serve it: %s", out)
	}
	if out := n.must(t, "volume", "create", "new", "--size", "1MiB"); !strings.HasPrefix(out, "nbd+unix://") {
		t.Errorf("a new volume is %s", out)
	}
	if out := shell(t, "! ./grange doctor --data "+n.data); !strings.Contains(out, "over NBD") || !strings.Contains(out, "CAP_SYS_ADMIN") || !strings.Contains(out, "kept can't be served") {
		t.Errorf("the doctor, who would have the right, says: %s", out)
	}
	n.must(t, "volume", "rm", "new")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = begin(t)
	shell(t, "cmp /init /mnt/init && umount /mnt")
	n.must(t, "volume", "rm", "kept")
}

// TestNodeOfItsOwnUser has a node run as the README says that one without root does,
// with a udev that takes its time.
func TestNodeOfItsOwnUser(t *testing.T) {
	const dir = "/tmp/own"
	shell(t, "mkdir -p "+dir+"/origin && chown -R 1000:1000 "+dir+" && chgrp 1000 /dev/ublk-control && chmod 660 /dev/ublk-control")
	udev := exec.CommandContext(t.Context(), "bash", "-c", `
		while sleep 0.2; do
			chgrp 1000 /dev/ublkc* && chmod 660 /dev/ublkc*
			chgrp 6 /dev/ublkb* && chmod 660 /dev/ublkb*
		done 2>/dev/null`)
	if err := udev.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := udev.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = udev.Wait() // it was killed
		shell(t, "chown root:root /dev/ublk-control && chmod 600 /dev/ublk-control")
	}()
	own := setpriv(t, "--reuid=1000 --regid=1000 --groups=6 --inh-caps=+sys_admin,+sys_resource --ambient-caps=+sys_admin,+sys_resource")
	n := beginAs(t, own, dir)
	device := n.must(t, "volume", "create", "own", "--size", "32MiB")
	shell(t, "mkfs.ext4 -q "+device+" && mount "+device+" /mnt && cp /init /mnt")
	if out := n.must(t, "doctor"); !strings.Contains(out, "volumes are served as block devices") || strings.Contains(out, "CAP_") {
		t.Errorf("doctor says: %s", out)
	}
	if err := n.handOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.kill(); err != nil {
		t.Fatal(err)
	}
	n = beginAs(t, own, dir)
	shell(t, "sync && echo 3 >/proc/sys/vm/drop_caches && cmp /init /mnt/init")
	if out, err := n.run(t.Context(), "volume", "detach", "own"); err == nil || !strings.Contains(out, "in use") {
		t.Errorf("detached while mounted: %v, %s", err, out)
	}
	shell(t, "umount /mnt")
	n.must(t, "volume", "rm", "own")
}

// TestDoctorSaysWhy looks at a machine without the driver, and at one where the
// user may not use it.
func TestDoctorSaysWhy(t *testing.T) {
	founded(t)
	doctor := func(prefix string) string { return shell(t, prefix+" ./grange doctor --data /tmp/doctor") }
	const nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
	shell(t, "rmmod ublk_drv")
	if out := doctor(""); !strings.Contains(out, "over NBD") || !strings.Contains(out, "modprobe ublk_drv") {
		t.Errorf("without the driver: %s", out)
	}
	n := begin(t)
	if out, err := n.run(t.Context(), "volume", "create", "x", "--size", "1MiB", "--transport", "ublk"); err == nil || !strings.Contains(out, "modprobe ublk_drv") {
		t.Errorf("a disk without the driver: %v, %s", err, out)
	}
	if out := n.must(t, "volume", "create", "x", "--size", "1MiB"); !strings.HasPrefix(out, "nbd+unix://") {
		t.Errorf("without the driver the device is %s", out)
	}
	n.must(t, "volume", "rm", "x")
	shell(t, "insmod /modules/ublk_drv.ko; chmod 666 /dev/ublk-control")
	shell(t, "mkdir /tmp/doctor && chmod 777 /tmp/doctor")
	if out := doctor(nobody); !strings.Contains(out, "CAP_SYS_ADMIN") {
		t.Errorf("without the right to: %s", out)
	}
	shell(t, "chmod 600 /dev/ublk-control")
	if out := doctor(nobody); !strings.Contains(out, "udev rule") {
		t.Errorf("without access: %s", out)
	}
}
