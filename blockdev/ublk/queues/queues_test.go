// Package queues tests disks of many queues, in a guest with as many processors, since
// the kernel gives no more queues than it has of those; and what only the newest kernels do.
package queues

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/simulations/vm"
)

const queues = 8

func TestMain(m *testing.M) { os.Exit(vm.Main(m, vm.Config{CPUs: queues, Newest: true})) }

// serve makes a disk of a new volume until the end of the test.
func serve(t *testing.T, size int64) (*volume.Volume, *ublk.Disk) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	if err := volume.Create(dir, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(volume.Config{Dir: dir, ID: [16]byte{1}, Size: size, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ublk.New(ublk.Config{Owner: 1, Threads: queues / 2, Queues: queues, Depth: 128, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	d, err := s.Add(t.Context(), -1, 0, v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := d.Stop(context.Background(), false)
		cancel()
		if err := errors.Join(err, <-ended, v.Close()); err != nil {
			t.Error(err)
		}
	})
	return v, d
}

// TestEightQueues writes and checks by eight processors at once, each bound to one
// and so to a queue, while half as many threads serve them.
func TestEightQueues(t *testing.T) {
	_, d := serve(t, 64<<20)
	found, err := filepath.Glob(filepath.Join("/sys/block", filepath.Base(d.Path()), "mq", "*"))
	if err != nil || len(found) != queues {
		t.Errorf("the kernel has %d queues, want %d", len(found), queues)
	}
	amounts := map[string]string{"512": "256k", "4k": "512k", "256k": "1m"} // of small ones an emulated processor does not do many
	for _, rw := range []string{"randwrite", "write"} {
		for bs, amount := range amounts {
			args := []string{
				"--name=x", "--filename=" + d.Path(), "--rw=" + rw, "--bs=" + bs, "--iodepth=16", "--ioengine=io_uring", "--direct=1",
				fmt.Sprintf("--numjobs=%d", queues), "--size=" + amount, "--offset_increment=4m", "--cpus_allowed=0-7", "--cpus_allowed_policy=split",
				"--verify=crc32c", "--verify_fatal=1", "--thread", "--minimal",
			}
			if out, err := exec.CommandContext(t.Context(), "fio", args...).CombinedOutput(); err != nil {
				t.Errorf("%s of %s: %v\n%s", rw, bs, err, out)
			}
		}
	}
}

// TestDiskGrowsUnderItsUsers makes a volume larger whose file system is mounted: the kernel
// sees it, the file system fills it, and what was there before is there.
func TestDiskGrowsUnderItsUsers(t *testing.T) {
	v, d := serve(t, 16<<20)
	shell := func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
		cmd.Env = append(os.Environ(), "DISK="+d.Path())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	shell("mkfs.ext4 -q $DISK && mount $DISK /mnt && head -c 4000000 /dev/urandom >/tmp/before && cp /tmp/before /mnt")
	for _, size := range []int64{24 << 20, 64 << 20} {
		if err := errors.Join(v.Grow(size), d.Grow(t.Context())); err != nil {
			t.Fatal(err)
		}
		if got := shell("blockdev --getsize64 $DISK"); got != fmt.Sprintln(size) {
			t.Errorf("the disk has %s, want %d", got, size)
		}
		shell("resize2fs $DISK")
	}
	shell(`
		head -c 40000000 /dev/urandom >/tmp/after && cp /tmp/after /mnt && umount /mnt
		e2fsck -fn $DISK
		mount $DISK /mnt && cmp /tmp/before /mnt/before && cmp /tmp/after /mnt/after && umount /mnt`)
}
