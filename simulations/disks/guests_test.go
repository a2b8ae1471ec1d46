package disks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/soak"
)

// patience is far more than an emulated guest takes for what takes moments, also where the
// machine is busy; what has failed ends it early.
const patience = 20 * time.Minute

// connect makes a device of a volume over NBD, by the kernel's client, until end is called.
func connect(t *testing.T, number int, device string) (path string, end func()) {
	t.Helper()
	k, err := guest.ConnectNBD(number, device)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", k.Path(), err)
		}
	})
	t.Cleanup(end)
	return k.Path(), end
}

// working is work on a disk, which goes on until the test ends it.
type working struct {
	*guest.Work
	end func()
}

// begun begins work that the end of the test stops, if nothing else has. It leaves some of
// an emulated processor to others.
func begun(t *testing.T, name string, step func() error) *guest.Work {
	const pause = 50 * time.Millisecond
	w := guest.Begin(name, func() error {
		<-time.After(pause)
		return step()
	})
	t.Cleanup(func() { _ = w.Stop() }) // the test has looked at it, or failed before
	return w
}

// shadows changes a disk beside what it should hold.
func shadows(t *testing.T, device string, size int) working {
	t.Helper()
	d, err := guest.OpenDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	s := guest.NewShadow(d, size, uint64(time.Now().UnixNano()))
	w := begun(t, "what is written past the page cache of "+device, s.Step)
	return working{w, func() {
		if err := errors.Join(w.Stop(), s.Check(), d.Close()); err != nil {
			t.Error(err)
		}
	}}
}

// mount makes a file system and has it mounted on a folder of its own.
func mount(t *testing.T, device string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	shell(t, "mkfs.ext4 -q "+device+" && mount "+device+" "+dir)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() }) // if the test has not
	return dir
}

// changesFiles changes the files of a new file system.
func changesFiles(t *testing.T, device string) working {
	t.Helper()
	dir := mount(t, device)
	f, err := guest.NewFiles(dir, uint64(time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	w := begun(t, "the file system of "+device, f.Step)
	return working{w, func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
		shell(t, "umount "+dir+" && e2fsck -fn "+device+" && mount "+device+" "+dir)
		if err := f.Check(); err != nil {
			t.Errorf("of %d syncs: %v", f.Synced(), err)
		}
		shell(t, "umount "+dir)
	}}
}

// verifies has fio write to a disk and read what it has written.
func verifies(t *testing.T, device string) working {
	t.Helper()
	said := new(log)
	// Not without pause: the journal is in memory here.
	fio := exec.Command("fio", "--name=v", "--filename="+device, "--ioengine=io_uring", "--direct=1", "--thread", "--rw=randwrite", "--bsrange=4k-64k", "--size=4m",
		"--verify=crc32c", "--verify_fatal=1", "--iodepth=16", "--fsync=32", "--loops=100000", "--rate_iops=20,20")
	fio.Dir, fio.Stdout, fio.Stderr = t.TempDir(), said, said
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- fio.Wait() }()
	t.Cleanup(func() { _ = fio.Process.Kill() }) // it has ended, unless the test failed
	// A step is a check of something that was written.
	w := begun(t, "fio", func() error {
		for before := requests(t, device); requests(t, device) == before; {
			select {
			case err := <-ended:
				ended <- err
				return errors.Join(errors.New("fio has ended: "+said.String()), err)
			case <-time.After(50 * time.Millisecond):
			}
		}
		return nil
	})
	return working{w, func() {
		err := w.Stop()
		err = errors.Join(err, fio.Process.Signal(os.Interrupt))
		var exit *exec.ExitError
		if end := <-ended; end != nil && !(errors.As(end, &exit) && exit.ExitCode() == 128) {
			err = errors.Join(err, end)
		}
		if out := said.String(); err != nil || strings.Contains(out, "verify:") || strings.Contains(out, "error") {
			t.Errorf("fio: %v: %s", err, out)
		}
	}}
}

// requests counts the reads that a device has answered.
func requests(t *testing.T, device string) int {
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	if err != nil {
		t.Error(err)
		return 0
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestMountedVolumeGrows makes the volume of a mounted file system larger: the kernel sees
// that at once where it can, from 6.16 on, and else when the disk is attached anew; the file
// system fills the room, and loses nothing.
func TestMountedVolumeGrows(t *testing.T) {
	n := begin(t)
	device := n.device(t, "volume", "create", "grows", "--size", "16MiB")
	dir := mount(t, device)
	f, err := guest.NewFiles(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	w := begun(t, "the file system", f.Step)
	var major, minor int
	if _, err := fmt.Sscanf(shell(t, "uname -r"), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	atOnce := major > 6 || major == 6 && minor >= 16
	for _, size := range []string{"24", "64"} {
		if err := w.Progress(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
		n.must(t, "volume", "resize", "grows", size+"MiB")
		if !atOnce {
			if n.warns("a volume has grown, and its disk has not") == 0 {
				t.Error("nobody says that the disk has the old size")
			}
			if err := w.Stop(); err != nil {
				t.Fatal(err)
			}
			shell(t, "umount "+dir)
			n.must(t, "volume", "detach", "grows")
			shell(t, "mount "+n.device(t, "volume", "attach", "grows")+" "+dir)
			w = begun(t, "the file system", f.Step)
		}
		if got, want := shell(t, "blockdev --getsize64 "+device), shell(t, "echo $(("+size+" << 20))"); got != want {
			t.Errorf("the disk has %s bytes, want %s", got, want)
		}
		shell(t, "resize2fs "+device)
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
		n = begin(t)
	}
	if err := errors.Join(w.Progress(t.Context(), 5), w.Stop()); err != nil {
		t.Fatal(err)
	}
	shell(t, "head -c 40000000 /dev/urandom >/tmp/file && cp /tmp/file "+dir+" && umount "+dir+" && e2fsck -fn "+device+" && mount "+device+" "+dir+" && cmp /tmp/file "+dir+"/file && rm /tmp/file")
	if err := f.Check(); err != nil {
		t.Error(err)
	}
	shell(t, "umount "+dir)
	n.must(t, "volume", "rm", "grows")
}

// TestFileSystemsOutliveTheirDisks kills a node under a file system, and takes the disk from
// it by force, as a guest that dies with its node has it: mounted again, it has what was
// synced, and is whole.
func TestFileSystemsOutliveTheirDisks(t *testing.T) {
	n := begin(t)
	device := n.device(t, "volume", "create", "crashed", "--size", "24MiB")
	dir := mount(t, device)
	f, err := guest.NewFiles(dir, uint64(time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	for round := range soak.Of(2, 20) {
		w := begun(t, "the file system", f.Step)
		if err := w.Progress(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
		n = begin(t)
		n.must(t, "volume", "detach", "crashed", "--force")
		if err := w.Progress(t.Context(), 1<<30); err == nil {
			t.Fatal("the file system goes on without its disk")
		}
		shell(t, "umount "+dir)
		device = n.device(t, "volume", "attach", "crashed")
		shell(t, "mount "+device+" "+dir)
		if err := f.Check(); err != nil {
			t.Fatalf("round %d, of %d syncs: %v", round, f.Synced(), err)
		}
		shell(t, "umount "+dir+" && e2fsck -fn "+device+" && mount "+device+" "+dir)
	}
	t.Logf("%d syncs", f.Synced())
	shell(t, "umount "+dir)
	n.must(t, "volume", "rm", "crashed")
}

// TestGuestsGoOn kills a node under guests that change their disks without pause, over ublk
// and over the kernel's NBD client, and starts it again after 5, 30 and 120 s, and many
// times at once: no request fails, no file system becomes read-only, and nothing that was
// acknowledged is lost or comes back.
func TestGuestsGoOn(t *testing.T) {
	n := begin(t)
	const small = 4 << 20
	shell(t, "dmesg -C")
	create := func(name, transport, size string) string {
		return n.device(t, "volume", "create", name, "--size", size, "--transport", transport)
	}
	first, endFirst := connect(t, 0, create("nbd-shadow", "nbd", "4MiB"))
	second, endSecond := connect(t, 1, create("nbd-files", "nbd", "24MiB"))
	works := []working{
		verifies(t, create("fio", "ublk", "4MiB")),
		shadows(t, create("shadow", "ublk", "4MiB"), small),
		changesFiles(t, create("files", "ublk", "24MiB")),
		shadows(t, first, small),
		changesFiles(t, second),
	}
	outages := soak.Of([]time.Duration{5 * time.Second}, []time.Duration{5 * time.Second, 30 * time.Second, 120 * time.Second})
	for range soak.Of(1, 20) {
		outages = append(outages, 0)
	}
	for _, outage := range append(outages, -1) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for _, w := range works {
			if err := w.Progress(ctx, 5); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if outage < 0 {
			break
		}
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
		<-time.After(outage)
		n = begin(t)
	}
	for _, w := range works {
		w.end()
	}
	endFirst()
	endSecond()
	for _, name := range []string{"fio", "shadow", "files", "nbd-shadow", "nbd-files"} {
		n.must(t, "volume", "rm", name)
	}
	if out := shell(t, "dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|read-only' || true"); out != "" {
		t.Errorf("the kernel says: %s", out)
	}
}
