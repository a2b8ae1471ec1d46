package disks

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkStall measures how long a reader of a disk waits at most while its node
// is killed and started again, and while it hands over; in an emulated guest, which
// is many times slower than a machine.
func BenchmarkStall(b *testing.B) {
	dir := b.TempDir()
	n, err := start(b.Context(), "./grange", dir)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := n.stop(); err != nil {
			b.Error(err)
		}
	}()
	device, err := n.run(b.Context(), "volume", "create", "stall", "--size", "16MiB")
	if err != nil {
		b.Fatalf("%v: %s", err, device)
	}
	for _, way := range []struct {
		name string
		do   func() error
	}{
		{"handover", func() error { return n.handOver(b.Context()) }},
		{"handover in a request", func() error {
			conn, err := n.keepWaiting(b.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			return n.handOver(b.Context())
		}},
		{"kill", func() (err error) {
			if err = n.kill(); err == nil {
				n, err = start(b.Context(), "./grange", dir)
			}
			return err
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			var longest time.Duration
			for b.Loop() {
				stop := make(chan struct{})
				waited := make(chan time.Duration)
				go func() { waited <- longestRead(b, device, stop) }()
				if err := way.do(); err != nil {
					b.Fatal(err)
				}
				close(stop)
				longest = max(longest, <-waited)
			}
			b.ReportMetric(longest.Seconds(), "s-longest-read")
			b.ReportMetric(0, "ns/op")
		})
	}
	if out, err := exec.Command("sh", "-c", "dmesg | grep 'I/O error'").CombinedOutput(); err == nil {
		b.Errorf("the kernel says: %s", out)
	}
}

// longestRead reads one block past the page cache again and again until stop, and
// returns the longest time that took.
func longestRead(b *testing.B, device string, stop <-chan struct{}) (longest time.Duration) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer unix.Munmap(page)
	for {
		select {
		case <-stop:
			return longest
		default:
		}
		began := time.Now()
		if _, err := unix.Pread(fd, page, 0); err != nil {
			b.Error(err)
			return longest
		}
		longest = max(longest, time.Since(began))
	}
}
