// Package queues tests disks of many queues, in a guest with as many processors:
// the kernel gives no more queues than it has of those.
package queues

import (
	"context"
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

func TestMain(m *testing.M) { os.Exit(vm.Main(m, vm.Config{CPUs: queues})) }

// TestEightQueues writes and checks by eight processors at once, each bound to one
// and so to a queue, while half as many threads serve them.
func TestEightQueues(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := volume.Create(dir, [16]byte{1}); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Open(volume.Config{Dir: dir, ID: [16]byte{1}, Size: 64 << 20, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
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
	found, err := filepath.Glob(filepath.Join("/sys/block", filepath.Base(d.Path()), "mq", "*"))
	if err != nil || len(found) != queues {
		t.Errorf("the kernel has %d queues, want %d", len(found), queues)
	}
	for _, rw := range []string{"randwrite", "write"} {
		for _, bs := range []string{"512", "4k", "256k"} {
			args := []string{
				"--name=x", "--filename=" + d.Path(), "--rw=" + rw, "--bs=" + bs, "--iodepth=16", "--ioengine=io_uring", "--direct=1",
				fmt.Sprintf("--numjobs=%d", queues), "--size=1m", "--offset_increment=4m", "--cpus_allowed=0-7", "--cpus_allowed_policy=split",
				"--verify=crc32c", "--verify_fatal=1", "--thread", "--minimal",
			}
			if out, err := exec.CommandContext(t.Context(), "fio", args...).CombinedOutput(); err != nil {
				t.Errorf("%s of %s: %v\n%s", rw, bs, err, out)
			}
		}
	}
	if err := d.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
