// Package throwaway boots a disk in a machine that is thrown away: what the guest writes goes with it, nobody reaches it and it
// reaches nobody, and it takes of the host what is left over. It knows neither images nor what is done with what was read.
package throwaway

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/node/instance/emulator"
	"github.com/grangemesh/grange/origin/content"
)

// What a Config has of which nothing is said.
const (
	// MemoryDefault is enough for a server to boot, and little beside a host's guests.
	MemoryDefault = 1 << 30
	// TimeoutDefault is many times what a boot takes by KVM, and what most take without.
	TimeoutDefault = 5 * time.Minute
	// QuietDefault is longer than a service that starts, or a kernel that unpacks itself, keeps a boot from reading, without KVM
	// too.
	QuietDefault = time.Minute
	// settleFor is that of one that asks for a login already: what starts beside that is part of the boot.
	settleFor = 10 * time.Second
)

const (
	// lookEvery is how often it is looked whether a boot is over: often enough that what it reads after that is little.
	lookEvery = 250 * time.Millisecond
	// killedWait is how long an emulator is waited for that was killed.
	killedWait = 10 * time.Second
	// monitorEnd is the emulator's socket in the folder of a machine, short as the path of one is to be.
	monitorEnd = "q"
	// broken is what an emulator is that can't go on: by KVM that is the host's fault, and without the emulator's.
	broken = "internal-error"
)

// Config is what is booted, and until when. Zero fields are defaults, where there are any.
type Config struct {
	// Device is the disk: a block device of this host, or an NBD URI with a unix socket. Nothing is written to it.
	Device string
	// Dir is an empty folder for what the machine writes, which the caller removes, and Room fails once it takes too much.
	Dir  string
	Room func() error
	// Accel is how it is run, as in qemu's -accel.
	Accel string
	// Memory is in bytes. Kernel is a file of this host that is booted in place of what the disk has for that, with Initrd and
	// Append.
	Memory                 int64
	CPUs                   int
	Kernel, Initrd, Append string
	// Touched is how much of the disk was read so far, in any unit. It is asked some times a second. Less than Least is no boot
	// yet, unless it ends by itself or asks for a login: the kernel may take long until it reads its disk.
	Touched func() int
	Least   int
	// Timeout is how long the boot may take at most. Once it has read Least, and then for Quiet nothing that it had not read
	// before, it is over; sooner where it asks for a login.
	Timeout, Quiet time.Duration
	// Again, unless nil, is told that the boot is tried once more, without the host's hardware, and why: what was read until then
	// is not of it.
	Again func(why error)
}

// End is how a boot ended.
type End string

// How boots end. Of one that is Late all that it read until then counts.
const (
	Prompt End = "it asks for a login"
	Still  End = "it reads nothing new"
	Off    End = "it has switched itself off"
	Late   End = "its time was over"
)

// Boot boots a disk until its console asks for a login and it reads nothing new, or that for longer, it switches itself off, or
// its time is over; then the machine is gone. It fails when the machine can't be run, or has not booted, with the last words of
// its console. With ctx, and with this process, the machine ends too. A host whose KVM is there and can't run it is one without.
func Boot(ctx context.Context, cfg Config) (End, error) {
	end, err := cfg.boot(ctx)
	if errors.Is(err, errBroken) && cfg.Accel != emulator.Plain {
		if cfg.Again != nil {
			cfg.Again(err)
		}
		cfg.Accel = emulator.Plain
		end, err = cfg.boot(ctx)
	}
	return end, err
}

// errBroken is a machine that stands still for good, and not of itself.
var errBroken = errors.New("this host can't run it")

func (cfg Config) boot(ctx context.Context) (End, error) {
	disk, err := emulator.Copy(cfg.Device)
	m := emulator.Machine{
		Name: "boot", Accel: cfg.Accel, Memory: cmp.Or(cfg.Memory, MemoryDefault), CPUs: cfg.CPUs, Disk: disk, Seed: filepath.Join(cfg.Dir, "seed"),
		Kernel: cfg.Kernel, Initrd: cfg.Initrd, Append: cfg.Append, Network: ",restrict=on",
	}
	if err == nil {
		err = m.WriteSeed(rand.Text(), []string{})
	}
	if err != nil {
		return "", err
	}
	running, kill := context.WithCancel(ctx)
	defer kill()
	monitor := filepath.Join(cfg.Dir, monitorEnd)
	said, ended, stopped := new(console), make(chan error, 1), make(chan error, 1)
	args := append(append(m.Command(), "-no-reboot", "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"), emulator.Monitor(monitor)...)
	go func() { ended <- run(running, args, cfg.Dir, said) }()
	go func() {
		defer close(stopped)
		stopped <- stands(running, monitor)
	}()
	end, err := cfg.watch(ctx, said, ended, stopped)
	kill()
	if end != Off {
		select {
		case <-ended:
		case <-time.After(killedWait):
			return end, errors.Join(err, fmt.Errorf("%w: the emulator goes on although it was killed", content.ErrUnavailable))
		}
	}
	for range stopped { // who looks is done
	}
	if n := cfg.Touched(); err == nil && (n == 0 || n < cfg.Least && end == Late) {
		err = fmt.Errorf("%w: the machine has read %d parts of its disk, and %s: does it boot by itself, or want a kernel beside it?", content.ErrInvalid, n, end)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w; its console said last: %q", err, said.last())
	}
	return end, err
}

// stands returns why a machine stands still that does not go on from there, or how ctx ended.
func stands(ctx context.Context, monitor string) error {
	for tick := time.Tick(lookEvery); ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
		}
		var now struct{ Status string }
		// It may not listen yet, or not any more: how it ends tells whoever runs it.
		_ = emulator.Talk(monitor, func(ask emulator.Asking) error { return ask("query-status", nil, &now) })
		switch now.Status {
		case broken:
			return fmt.Errorf("%w: %w: the emulator stands still with %s", content.ErrUnavailable, errBroken, now.Status)
		case "io-error", "guest-panicked":
			return fmt.Errorf("%w: the machine stands still with %s", content.ErrUnavailable, now.Status)
		}
	}
}

// watch returns how the boot ended, or why it is to; the emulator has, if that is Off.
func (cfg Config) watch(ctx context.Context, said *console, ended, stopped <-chan error) (End, error) {
	late := time.After(cmp.Or(cfg.Timeout, TimeoutDefault))
	last, since := cfg.Touched(), time.Now()
	for tick := time.Tick(lookEvery); ; {
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case err := <-ended:
			return Off, err
		case err := <-stopped:
			return "", err
		case <-late:
			return Late, nil
		case <-tick:
		}
		if n := cfg.Touched(); n != last {
			last, since = n, time.Now()
		}
		quiet, still := cmp.Or(cfg.Quiet, QuietDefault), time.Since(since)
		switch {
		case said.asks() && still >= min(quiet, settleFor):
			return Prompt, nil
		case last >= max(cfg.Least, 1) && still >= quiet:
			return Still, nil
		}
		if cfg.Room != nil {
			if err := cfg.Room(); err != nil {
				return "", err
			}
		}
	}
}
