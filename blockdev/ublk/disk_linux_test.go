package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

func TestFileSystem(t *testing.T) {
	said := kernelLog(t)
	s, _ := serve(t, ublk.Config{})
	d := add(t, s, newVolume(t, 256<<20))
	shell(t, d.Path(), `
		mkfs.ext4 -q $DISK
		mount $DISK /mnt
		for i in $(seq 100); do mkdir -p /tmp/tree/$((i % 17)); head -c $((i * 977)) /dev/urandom >/tmp/tree/$((i % 17))/$i; done
		cp -r /tmp/tree program /mnt
		sync
		echo 3 >/proc/sys/vm/drop_caches
		diff -r /tmp/tree /mnt/tree
		cmp program /mnt/program
		rm -r /mnt/tree/1* /tmp/tree
		fstrim /mnt
		umount /mnt
		e2fsck -fn $DISK`)
	if log := said(); strings.Contains(log, "I/O error") {
		t.Errorf("the kernel says: %s", log)
	}
}

// TestFioVerifies writes and checks with fio: random and sequential, sizes from 512
// bytes to 1 MiB, depths from 1 to 128, by 1 queue and by 2.
func TestFioVerifies(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			s, _ := serve(t, ublk.Config{Queues: queues, Depth: 128})
			d := add(t, s, newVolume(t, 128<<20))
			var jobs strings.Builder
			for _, kind := range []string{"randwrite", "write"} {
				for _, size := range []string{"512", "4k", "60k", "1m"} {
					for _, depth := range []int{1, 16, 128} {
						amount := "8m"
						switch size { // of small ones an emulated processor does not do many
						case "512":
							amount = soak.Of("128k", "512k")
						case "4k":
							amount = soak.Of("1m", "8m")
						case "1m":
							amount = soak.Of("4m", "8m")
						}
						fmt.Fprintf(&jobs, "[%s-%s-%d]\nstonewall\nrw=%[1]s\nbs=%[2]s\niodepth=%[3]d\nsize=%s\noffset=%dk\n", kind, size, depth, amount, 4*depth)
					}
				}
			}
			shell(t, d.Path(), fmt.Sprintf(`
				cat >/tmp/jobs <<'END'
[global]
direct=1
ioengine=io_uring
verify=crc32c
verify_fatal=1
do_verify=1
thread=1
group_reporting=1
%s
END
				fio --filename=$DISK --output-format=terse --minimal /tmp/jobs`, jobs.String()))
			if got := strings.Fields(shell(t, "", "ls /sys/block/"+strings.TrimPrefix(d.Path(), "/dev/")+"/mq")); len(got) != queues {
				t.Errorf("the kernel has queues %q, want %d", got, queues)
			}
		})
	}
}

func TestDiscardAndZeroes(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	d := add(t, s, newVolume(t, 64<<20))
	shell(t, d.Path(), `
		dd if=/dev/urandom of=/tmp/data bs=1M count=64 status=none
		dd if=/tmp/data of=$DISK bs=1M oflag=direct status=none
		blkdiscard -o 4096 -l 1048576 $DISK
		dd if=/dev/zero of=/tmp/data bs=4096 seek=1 count=256 conv=notrunc status=none
		blkdiscard -z -o 8389120 -l 20000256 $DISK
		dd if=/dev/zero of=/tmp/data bs=512 seek=16385 count=39063 conv=notrunc status=none
		fallocate -p -o 40000000 -l 512000 $DISK
		dd if=/dev/zero of=/tmp/data bs=512 seek=78125 count=1000 conv=notrunc status=none
		cmp /tmp/data $DISK
		blkdiscard $DISK
		cmp -n 67108864 /dev/zero $DISK
		rm /tmp/data`)
}

// TestOddSizes serves sizes that no page divides, with both block sizes.
func TestOddSizes(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	for _, x := range []struct{ size, block int }{{512, 512}, {1536, 512}, {4096, 4096}, {1<<20 + 512, 512}, {1<<20 + 12288, 4096}, {7<<20 - 512, 512}} {
		m := newMemory(int64(x.size))
		m.geometry.BlockSize = x.block
		for i := range m.data {
			m.data[i] = byte(i / 512 * 7)
		}
		d := add(t, s, m)
		got := shell(t, d.Path(), "blockdev --getsize64 --getss $DISK; cat $DISK | sha256sum; tail -c 512 $DISK | od -An -tu1 -N1")
		want := shell(t, "", fmt.Sprintf("printf '%%d\\n' %d %d", x.size, x.block))
		if fields, last := strings.Fields(got), fmt.Sprint(m.data[x.size-1]); !strings.HasPrefix(got, want) || fields[len(fields)-1] != last {
			t.Errorf("size %d, blocks of %d: %s; want %s and a last byte of %s", x.size, x.block, got, want, last)
		}
	}
}

func TestReadOnly(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(1 << 20)
	m.geometry.ReadOnly = true
	d := add(t, s, m)
	if out, err := run(t.Context(), d.Path(), "dd if=/dev/zero of=$DISK bs=4096 count=1 oflag=direct"); err == nil {
		t.Errorf("a write succeeds: %s", out)
	}
	if out := shell(t, d.Path(), "blockdev --getro $DISK"); out != "1\n" {
		t.Errorf("the kernel has read-only %s", out)
	}
}

// TestSlowRequestsHoldUpNoOther blocks 63 of 64 tags; the 64th request is answered
// while they wait.
func TestSlowRequestsHoldUpNoOther(t *testing.T) {
	const depth, free = 64, 63 << 20
	s, _ := serve(t, ublk.Config{Queues: 1, Depth: depth})
	m := newMemory(64 << 20)
	d := add(t, s, m)
	release := make(chan struct{})
	m.held = func(off int64) <-chan struct{} {
		if off >= free {
			return nil
		}
		return release
	}
	var group errgroup.Group
	for i := range depth - 1 {
		group.Go(func() error { _, err := read(d.Path(), int64(i)<<20); return err })
	}
	for range depth - 1 {
		<-m.waiting
	}
	for range 100 {
		if _, err := read(d.Path(), free); err != nil {
			t.Error(err)
		}
	}
	close(release)
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestErrorsStayWithTheirBlocks fails what no source has, and nothing else; it
// reads well when a source is back.
func TestErrorsStayWithTheirBlocks(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(16 << 20)
	d := add(t, s, m)
	lost := func(off int64) bool { return off/4096%3 == 1 }
	m.fails = func(off int64) error {
		if lost(off) {
			return fmt.Errorf("chunk 7: %w: cache, farm, swarm and origin were asked", content.ErrUnavailable)
		}
		return nil
	}
	for i := range int64(300) {
		if _, err := read(d.Path(), i*4096); lost(i*4096) != errors.Is(err, unix.EIO) {
			t.Fatalf("block %d: %v", i, err)
		}
	}
	m.fails = func(int64) error { return nil }
	for i := range int64(300) {
		if _, err := read(d.Path(), i*4096); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStopIsRefusedWhileInUse(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	d := add(t, s, newVolume(t, 64<<20))
	refused := func(by string) {
		t.Helper()
		if err := d.Stop(t.Context(), false); !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), by) {
			t.Errorf("stopped with %v, want a refusal that names %q", err, by)
		}
	}
	shell(t, d.Path(), "mkfs.ext4 -q $DISK && mount $DISK /mnt && cp program /mnt")
	refused("mounted on /mnt")
	shell(t, d.Path(), "cmp program /mnt/program && umount /mnt")

	fd, err := unix.Open(d.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	refused("open in process")
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(shell(t, d.Path(), "losetup -f --show $DISK"))
	refused(loop + " stands on " + d.Path())
	shell(t, d.Path(), "losetup -d "+loop+"; e2fsck -fn $DISK && mount $DISK /mnt")
	if err := d.Stop(t.Context(), true); err != nil {
		t.Errorf("forced: %v", err)
	}
	if out, err := run(t.Context(), d.Path(), "test ! -e $DISK && ! cmp program /mnt/program && umount /mnt"); err != nil {
		t.Errorf("after a forced stop: %v\n%s", err, out)
	}
}

// TestStopEndsStuckRequests stops a disk whose device never answers.
func TestStopEndsStuckRequests(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(1 << 20)
	d := add(t, s, m)
	m.held = func(int64) <-chan struct{} { return make(chan struct{}) }
	failed := make(chan error, 1)
	go func() { _, err := read(d.Path(), 8192); failed <- err }()
	<-m.waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Stop(ctx, true); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the read succeeded")
	}
}

// TestForcedStopCutsReads stops a disk of which a read waits for a source that is away:
// it gets an error at once, and is not waited for.
func TestForcedStopCutsReads(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(1 << 20)
	d := add(t, s, m)
	m.held = func(int64) <-chan struct{} { return make(chan struct{}) }
	failed := make(chan error, 1)
	go func() { _, err := read(d.Path(), 8192); failed <- err }()
	<-m.waiting
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // when it ends all is cancelled
	defer cancel()
	if err := d.Stop(ctx, true); err != nil || ctx.Err() != nil {
		t.Errorf("stop: %v; %v", err, ctx.Err())
	}
	if err := <-failed; err == nil {
		t.Error("the read succeeded")
	}
}

// deaf is a device that does not hear that a request was cancelled.
type deaf struct{ *memory }

func (d deaf) ReadAt(_ context.Context, p []byte, off int64) error {
	return d.memory.ReadAt(context.Background(), p, off)
}

// TestStopWaitsForDeafDevice: a disk whose device does not return is not stopped, and
// its reader gets what it waits for.
func TestStopWaitsForDeafDevice(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(1 << 20)
	d := add(t, s, deaf{m})
	release := make(chan struct{})
	m.held = func(int64) <-chan struct{} { return release }
	copy(m.data[8192:], "late")
	type result struct {
		p   []byte
		err error
	}
	late := make(chan result, 1)
	go func() {
		p, err := read(d.Path(), 8192)
		late <- result{p, err}
	}()
	<-m.waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Stop(ctx, true); !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "does not return") {
		t.Errorf("stop: %v", err)
	}
	close(release)
	if r := <-late; r.err != nil || !bytes.HasPrefix(r.p, []byte("late")) {
		t.Errorf("the reader got %.4q, %v", r.p, r.err)
	}
}

// TestStartWaitsForNoSource adds a disk whose device does not answer the kernel's
// search for partitions.
func TestStartWaitsForNoSource(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	m := newMemory(1 << 20)
	release := make(chan struct{})
	m.held = func(int64) <-chan struct{} { return release }
	d := add(t, s, m)
	close(release)
	if _, err := read(d.Path(), 0); err != nil {
		t.Error(err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, c := range []ublk.Config{
		{}, {Owner: 1, Threads: 65}, {Owner: 1, Threads: -1}, {Owner: 1, Queues: 5000}, {Owner: 1, Depth: 5000},
	} {
		if _, err := ublk.New(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestSweepTakesOnlyOwn leaves other owners' disks and those that are kept.
func TestSweepTakesOnlyOwn(t *testing.T) {
	theirs, _ := serve(t, ublk.Config{Owner: another})
	foreign := add(t, theirs, newMemory(1<<20))
	old, leave := serve(t, ublk.Config{})
	var disks []*ublk.Disk
	for range 3 {
		d, err := old.Add(t.Context(), -1, 0, newMemory(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, d)
	}
	leave()
	s, _ := serve(t, ublk.Config{})
	keep := disks[1].Number()
	swept, err := s.Sweep(t.Context(), func(n int, _ uint32) bool { return n == keep })
	if err != nil || len(swept) != 2 {
		t.Errorf("swept %v, %v, want %d and %d", swept, err, disks[0].Number(), disks[2].Number())
	}
	if _, err := read(foreign.Path(), 0); err != nil {
		t.Errorf("another's disk: %v", err)
	}
	d, err := s.Add(t.Context(), keep, 0, newMemory(1<<20))
	if err != nil || d.Number() != keep {
		t.Fatalf("the disk that was kept: %v", err)
	}
	if _, err := read(d.Path(), 0); err != nil {
		t.Error(err)
	}
	if err := d.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
	// The number of another owner's disk is not taken from it.
	d, err = s.Add(t.Context(), foreign.Number(), 0, newMemory(1<<20))
	if err != nil || d.Number() == foreign.Number() {
		t.Fatalf("a number that is taken: %v", err)
	}
	if err := d.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestServerLeavesInTheMiddle ends a server while disks are made and stopped.
func TestServerLeavesInTheMiddle(t *testing.T) {
	for i := range soak.Rounds(50) {
		s, leave := serve(t, ublk.Config{})
		kept, err := s.Add(t.Context(), -1, 0, newMemory(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		group := new(errgroup.Group)
		for range 4 {
			group.Go(func() error {
				if d, err := s.Add(t.Context(), -1, 0, newMemory(1<<20)); err == nil {
					_ = d.Stop(t.Context(), false) // with the server gone it stays, to be swept
				}
				return nil
			})
		}
		for range i { // a little later each time
			if _, err := read(kept.Path(), 0); err != nil {
				t.Fatal(err)
			}
		}
		leave()
		_ = group.Wait() // none fails
		if err := kept.Stop(t.Context(), false); !errors.Is(err, content.ErrClosed) {
			t.Errorf("stopped by a server that has left: %v", err)
		}
		next, leave := serve(t, ublk.Config{})
		swept, err := next.Sweep(t.Context(), func(n int, _ uint32) bool { return n == kept.Number() })
		if err != nil || len(swept) > 4 {
			t.Errorf("swept %v, %v", swept, err)
		}
		again, err := next.Add(t.Context(), kept.Number(), 0, newMemory(1<<20))
		if err != nil || again.Number() != kept.Number() {
			t.Fatal(err)
		}
		if err := again.Stop(t.Context(), false); err != nil {
			t.Error(err)
		}
		leave()
	}
	if out := shell(t, "", "ls /dev/ublk[bc]* 2>/dev/null || true"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// TestOneNumberTwice asks for a number that a disk of the same server has.
func TestOneNumberTwice(t *testing.T) {
	s, _ := serve(t, ublk.Config{})
	first := add(t, s, newMemory(1<<20))
	second, err := s.Add(t.Context(), first.Number(), 0, newMemory(2<<20))
	if err != nil || second.Number() == first.Number() {
		t.Fatalf("a second disk of number %d: %v", first.Number(), err)
	}
	for path, size := range map[string]string{first.Path(): "1048576\n", second.Path(): "2097152\n"} {
		if got := shell(t, path, "blockdev --getsize64 $DISK"); got != size {
			t.Errorf("%s has %s, want %s", path, got, size)
		}
	}
	if err := second.Stop(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// TestQuietDiskHoldsNoMemory: 64 long requests that wait hold memory, and give it back.
func TestQuietDiskHoldsNoMemory(t *testing.T) {
	const depth, each = 64, 512 << 10
	s, _ := serve(t, ublk.Config{Queues: 1})
	m := newMemory(depth * each)
	d := add(t, s, m)
	release := make(chan struct{})
	m.held = func(int64) <-chan struct{} { return release }
	before := holding(t).heap
	ended := make(chan error, 1)
	go func() {
		_, err := run(t.Context(), d.Path(), "fio --name=x --filename=$DISK --rw=read --bs=512k --iodepth=64 --ioengine=io_uring --direct=1 --size=32m --thread --minimal >/dev/null")
		ended <- err
	}()
	for range depth {
		<-m.waiting
	}
	if full := holding(t).heap - before; full < depth*each>>10 {
		t.Errorf("%d requests of %d KiB wait in %d KiB", depth, each>>10, full)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if left := holding(t).heap - before; left > 4<<10 { // some is the runtime's
		t.Errorf("%d KiB are still in use", left)
	}
}
