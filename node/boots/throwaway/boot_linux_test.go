package throwaway_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/boots/throwaway"
	"github.com/grangemesh/grange/origin/content"
)

// counted is the only export of a server, of which reads are counted.
type counted struct {
	*volume.Volume
	reads atomic.Int64
}

func (c *counted) TryReadAt([]byte, int64) bool { return false }

func (c *counted) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.reads.Add(1)
	return c.Volume.ReadAt(ctx, p, off)
}

func (c *counted) Lookup(context.Context, string) (blockdev.Device, func(), error) {
	return c, func() {}, nil
}

func (c *counted) List(context.Context) ([]string, error) { return nil, nil }

// disk is one that begins with a sector of a program for a processor that has just been switched on.
func disk(t *testing.T, program []byte) (*counted, throwaway.Config) {
	t.Helper()
	dir := t.TempDir()
	id := [16]byte{1}
	if err := volume.Create(filepath.Join(dir, "disk"), id); err != nil {
		t.Fatal(err)
	}
	vol, err := volume.Open(volume.Config{Dir: filepath.Join(dir, "disk"), ID: id, Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	sector := make([]byte, 512)
	copy(sector, program)
	copy(sector[510:], "\x55\xaa")
	if err := vol.WriteAt(t.Context(), sector, 0, false); err != nil {
		t.Fatal(err)
	}
	l, err := nbd.Listen(t.Context(), "unix:"+filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	c := &counted{Volume: vol}
	server, err := nbd.New(nbd.Config{Exports: c, Listeners: []net.Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, vol.Close()); err != nil {
			t.Error(err)
		}
	})
	return c, throwaway.Config{
		Device: nbd.URI(l.Addr(), "disk"), Dir: t.TempDir(), Accel: "tcg", Memory: 64 << 20, Touched: func() int { return int(c.reads.Load()) }, Timeout: time.Minute, Quiet: time.Minute,
	}
}

// says is a program that writes a text to the console and stands still, after what it begins with.
func says(text string, begins ...byte) []byte {
	return append(append(begins,
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x16+byte(len(begins)), 0x7c, // mov si, text
		0xba, 0xf8, 0x03, // mov dx, COM1
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz end
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		0xf4,       // end: hlt
		0xeb, 0xfd, // jmp end
	), text+"\x00"...)
}

// TestABrokenKVM: a machine that KVM can't run is run without at once; so is one on a host that has none.
func TestABrokenKVM(t *testing.T) {
	_, cfg := disk(t, says("vm login: ",
		0x66, 0xb8, 0x00, 0x00, 0x00, 0x40, // mov eax, 0x40000000: who emulates this
		0x0f, 0xa2, // cpuid
		0x66, 0x81, 0xfb, 'K', 'V', 'M', 'K', // cmp ebx, "KVMK"
		0x75, 0x09, // jne to what says the text
		0xb8, 0x00, 0xa0, // mov ax, 0xa000
		0x8e, 0xd8, // mov ds, ax
		0xd9, 0x06, 0x00, 0x00, // fld dword [0]: of a device, which no KVM knows to do
	))
	has := false
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		has = f.Close() == nil
	}
	var again []error
	cfg.Again = func(why error) { again = append(again, why) }
	cfg.Accel, cfg.Timeout, cfg.Quiet, cfg.Least = "kvm:tcg", time.Hour, time.Second, 1000
	if end, err := throwaway.Boot(t.Context(), cfg); err != nil || end != throwaway.Prompt {
		t.Errorf("%q, %v", end, err)
	}
	if len(again) > 1 || has != (len(again) == 1) || has && !strings.Contains(again[0].Error(), "internal-error") {
		t.Errorf("with KVM %t, it is tried again for %v", has, again)
	}
	if left := of(t, cfg.Dir); len(left) > 0 {
		t.Errorf("processes %v go on", left)
	}
	if !has {
		return
	}
	cfg.Accel, cfg.Again = "kvm", nil // as one may have asked for
	if end, err := throwaway.Boot(t.Context(), cfg); err != nil || end != throwaway.Prompt {
		t.Errorf("%q, %v", end, err)
	}
}

// resets is a program that has the machine begin anew, which ends it here.
const resets = "\xb0\xfe\xe6\x64\xf4" // mov al, 0xfe; out 0x64, al; hlt

func TestBootsEnd(t *testing.T) {
	for name, x := range map[string]struct {
		program []byte
		change  func(*throwaway.Config)
		want    throwaway.End
	}{
		"a prompt":            {says("Debian 12\r\nvm login: "), nil, throwaway.Prompt},
		"switched off":        {[]byte(resets), nil, throwaway.Off},
		"quiet":               {says("hello\r\nLast login: today\r\n"), func(cfg *throwaway.Config) { cfg.Quiet = time.Second }, throwaway.Still},
		"too late":            {says("login: is"), func(cfg *throwaway.Config) { cfg.Timeout = 3 * time.Second }, throwaway.Late},
		"a folder with comma": {says("vm login:"), func(cfg *throwaway.Config) { cfg.Dir = mkdir(t, "one, two") }, throwaway.Prompt},
	} {
		t.Run(name, func(t *testing.T) {
			_, cfg := disk(t, x.program)
			if x.change != nil {
				x.change(&cfg)
			}
			if end, err := throwaway.Boot(t.Context(), cfg); err != nil || end != x.want {
				t.Errorf("%q, %v, want %q", end, err, x.want)
			}
			if left := of(t, cfg.Dir); len(left) > 0 {
				t.Errorf("processes %v go on", left)
			}
		})
	}
}

func mkdir(t *testing.T, name string) string {
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestNothingIsWrittenAndNothingWaits: what a guest writes is not on its disk, an emulator comes after all else, and is gone
// with its boot.
func TestNothingIsWrittenAndNothingWaits(t *testing.T) {
	writes := []byte{ // int 13h: the sector at which this is, over the second
		0x31, 0xc0, 0x8e, 0xc0, // xor ax, ax; mov es, ax
		0xbb, 0x00, 0x7c, // mov bx, 0x7c00
		0xb8, 0x01, 0x03, // mov ax, 0x0301: write one sector
		0xb9, 0x02, 0x00, // mov cx, 2: the second
		0x30, 0xf6, // xor dh, dh
		0xcd, 0x13, // int 13h
		0xf4, 0xeb, 0xfd, // hlt; jmp
	}
	c, cfg := disk(t, writes)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var nice []string
	begun := time.Now()
	cfg.Touched = func() int {
		if c.reads.Load() > 0 && time.Since(begun) > 2*time.Second { // it has written by then
			for _, pid := range of(t, cfg.Dir) {
				stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
				if err == nil {
					nice = append(nice, strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[16])
				}
			}
			cancel()
		}
		return int(c.reads.Load())
	}
	if end, err := throwaway.Boot(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("%q, %v", end, err)
	}
	if len(nice) != 1 || nice[0] != "19" {
		t.Errorf("it runs as nice as %v", nice)
	}
	if left := of(t, cfg.Dir); len(left) > 0 {
		t.Errorf("processes %v go on", left)
	}
	sector := make([]byte, 512)
	if err := c.Volume.ReadAt(t.Context(), sector, 512); err != nil || !bytes.Equal(sector, make([]byte, 512)) {
		t.Errorf("the guest has written to its disk: %x, %v", sector[:16], err)
	}
}

// TestFailuresSayWhy: what the emulator or the console has said last is told.
func TestFailuresSayWhy(t *testing.T) {
	_, cfg := disk(t, says(""))
	full, mute, nonsense, blank := cfg, cfg, cfg, cfg
	blank.Least, blank.Quiet, blank.Timeout = 1000, time.Millisecond, 3*time.Second
	nonsense.Accel = "nonsense"
	full.Room = func() error { return content.ErrNoSpace }
	mute.Touched, mute.Timeout = func() int { return 0 }, 3*time.Second
	for want, cfg := range map[string]throwaway.Config{"invalid accelerator nonsense": nonsense, content.ErrNoSpace.Error(): full, "has read 0 parts of its disk, and its time was over": mute, " parts of its disk, and its time was over": blank} {
		cfg.Dir = t.TempDir()
		if end, err := throwaway.Boot(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q, %v, want %q", end, err, want)
		}
	}
}

// of are the processes that work in a folder.
func of(t *testing.T, dir string) (out []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if env, err := os.ReadFile(path); err == nil && bytes.Contains(append(env, 0), []byte("TMPDIR="+dir+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			out = append(out, pid)
		}
	}
	return out
}
