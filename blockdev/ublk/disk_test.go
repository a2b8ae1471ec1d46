package ublk_test

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"testing"
	"log/slog"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/simulations/vm"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m, vm.Config{})) }

type memory struct {
	mu   sync.RWMutex
	data []byte
}

func (m *memory) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: int64(len(m.data)), BlockSize: 512, PreferredSize: 256 << 10}
}
func (m *memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.RLock(); defer m.mu.RUnlock()
	copy(p, m.data[off:])
	return nil
}
func (m *memory) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	m.mu.Lock(); defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}
func (m *memory) Flush(context.Context) error { return nil }

func TestSmoke(t *testing.T) {
	s, err := ublk.New(ublk.Config{Owner: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	d, err := s.Add(t.Context(), -1, &memory{data: make([]byte, 64<<20)})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(d.Path())
	out, err := exec.Command("bash", "-exc", "mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 /mnt; cp -r /sys/class/ublk-char /mnt; cp /guest/program /mnt; sync; cmp /guest/program /mnt/program; umount /mnt; e2fsck -fn /dev/ublkb0").CombinedOutput()
	t.Logf("%v\n%s", err, out)
	t.Log(d.Stop(t.Context(), false))
	cancel()
	t.Log(<-done)
}
