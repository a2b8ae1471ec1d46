package mesh

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
	"github.com/grangemesh/grange/simulations/vm"
)

// reader is what the machine does: it reads each file of its file system, in an order
// that nobody foresees, says how long that took, and writes a little, until its first
// disk says stop. Then it says what the kernel had to say.
const reader = `
mount /dev/vdc /mnt
ls -lR /mnt >/dev/null
: >/mnt/log && sync /mnt/log
echo 120 >/proc/sys/kernel/hung_task_timeout_secs # as elsewhere
dmesg -C
echo reading
for file in /mnt/files/*; do
	[ "$(dd if=/dev/vdb bs=4 count=1 iflag=direct 2>/dev/null)" = stop ] && break
	read began rest </proc/uptime
	sum=$(sha256sum "$file")
	read ended rest </proc/uptime
	echo "$began $ended $sum"
	echo "$ended" >>/mnt/log && sync /mnt/log
	sleep 0.2
done
dmesg | grep -vE 'hrtimer:|clocksource:' || true # an emulated clock stands still now and then
echo "the kernel has said"
umount /mnt && e2fsck -fn /dev/vdc`

// machine is a virtual one that runs the reader on a volume.
type machine struct {
	stop  string // the path of its first disk
	lines chan string
	ended chan error
}

// files of a machine are of 1 MiB, each named by its hash: enough of them for some
// outages, of which each takes a handful, and for other members' copies after.
func files(outages int) int { return 40 + 8*outages }

// fileSystem makes an image with them.
func fileSystem(t *testing.T, dir string, n int) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{})
	data := make([]byte, 1<<20)
	for range n {
		rng.Read(data)
		if err := os.WriteFile(filepath.Join(tree, "files", fmt.Sprintf("%x", sha256.Sum256(data))), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "ext4.raw")
	if out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-t", "ext4", "-d", tree, path, fmt.Sprintf("%dM", n+32)).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return path
}

// bootReader starts the machine; device is the NBD URI of its volume.
func bootReader(t *testing.T, dir, device string) *machine {
	t.Helper()
	m := &machine{stop: filepath.Join(dir, "stop"), lines: make(chan string, files(16)), ended: make(chan error, 1)}
	if err := os.WriteFile(m.stop, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		status, err := vm.Run(ctx, vm.Config{Binary: "/bin/bash", Args: []string{"-euc", reader}, Disks: []string{m.stop}, Served: []string{device}, Output: w, Timeout: time.Hour, MemoryMiB: 512, CPUs: 1})
		if err == nil && status != 0 {
			err = fmt.Errorf("its status is %d", status)
		}
		m.ended <- err
		w.Close()
	}()
	go func() {
		defer close(m.lines)
		for says := bufio.NewScanner(r); says.Scan(); {
			m.lines <- says.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range m.lines { // until it has ended
		}
	})
	return m
}

// says returns the next line.
func (m *machine) says(t *testing.T, within time.Duration) string {
	t.Helper()
	select {
	case line, ok := <-m.lines:
		if !ok {
			t.Fatalf("the machine has ended: %v", <-m.ended)
		}
		return line
	case <-time.After(within):
		t.Fatalf("the machine says nothing for %s", within)
	}
	return ""
}

// took returns how long the machine took for the next file.
func (m *machine) took(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	var began, ended float64
	var sum, name string
	line := m.says(t, within)
	if n, err := fmt.Sscan(line, &began, &ended, &sum, &name); n != 4 || sum != filepath.Base(name) {
		t.Fatalf("the machine says %q: %v", line, err)
	}
	return time.Duration((ended - began) * float64(time.Second))
}

// TestMachinesOutliveTheStoresBlips boots a machine whose disk is a volume of a cold
// node, and lets the store, which alone has the bytes, fail in each way. Its file system
// sees nothing but time, and what another member has it reads meanwhile.
func TestMachinesOutliveTheStoresBlips(t *testing.T) {
	ways, spans := map[string]lab.Meddler{"answers 503": outages()["answers 503"]}, []time.Duration{time.Second}
	if soak.Full() {
		ways, spans = outages(), []time.Duration{time.Second, 5 * time.Second, time.Minute, 2 * time.Minute}
	}
	l := newLab(t)
	_, store := front(t, l)
	nodes := start(t, l, store.URL, "a", "a")
	holder, cold := nodes[0], nodes[1]
	run(t, holder, "image", "import", "disk", fileSystem(t, l.Dir, files(len(ways)*len(spans))))
	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	m := bootReader(t, l.Dir, run(t, cold, "volume", "create", "v", "--from", "image:disk", "--transport", "nbd"))
	if line := m.says(t, patience); line != "reading" {
		t.Fatalf("the machine says %q", line)
	}
	for name, meddle := range ways {
		for _, span := range spans {
			m.outlives(t, store, outage{name, meddle, span})
		}
	}
	if err := holder.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the holder is back", func(ctx context.Context) bool { return len(get[api.Peers](t, cold, "/api/peers").Peers) > 0 })
	store.Meddle(outages()["hangs"])
	before := get[api.Status](t, cold, "/api/status").Bytes
	for range 8 {
		m.took(t, patience)
	}
	if after := get[api.Status](t, cold, "/api/status").Bytes; after.Farm == before.Farm || after.Origin > before.Origin {
		t.Errorf("while the store hangs, the farm brought %d bytes and the origin %d", after.Farm-before.Farm, after.Origin-before.Origin)
	}
	store.Meddle(nil)
	m.ends(t)
}

// patience is far more than an emulated processor takes for anything, also where the
// machine is busy; what has failed ends it early.
const patience = 10 * time.Minute

// outlives lets the machine read through an outage. Beyond that a read gets the two
// seconds that it may take to find the store back, and some for a busy machine.
func (m *machine) outlives(t *testing.T, store *lab.Front, o outage) {
	t.Helper()
	const back, busy = 2 * time.Second, 20 * time.Second
	met := make(chan struct{}, 1)
	store.Meddle(func(key string, w http.ResponseWriter, r *http.Request, s http.Handler) {
		if r.Header.Get("Range") != "" { // it is a read
			select {
			case met <- struct{}{}:
			default:
			}
		}
		o.meddle(key, w, r, s)
	})
	select {
	case <-met:
	case <-time.After(patience):
		t.Fatalf("%s: nobody has asked the store", o.name)
	}
	<-time.After(o.span)
	store.Meddle(nil)
	var longest time.Duration
	for range len(m.lines) + 2 { // from before, from the outage, and one to begin anew
		longest = max(longest, m.took(t, back+busy))
	}
	t.Logf("%s for %s: the longest read took %s longer", o.name, o.span, (longest - o.span).Round(time.Millisecond))
}

// ends tells the machine to stop: its kernel has said nothing meanwhile.
func (m *machine) ends(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(m.stop, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("stop")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	for line := range m.lines {
		if line == "the kernel has said" {
			break
		}
		if n, _ := fmt.Sscan(line, new(float64), new(float64)); n != 2 {
			t.Errorf("the machine's kernel: %s", line)
		}
	}
	for line := range m.lines {
		t.Log(line) // e2fsck
	}
	if err := <-m.ended; err != nil {
		t.Error(err)
	}
}
