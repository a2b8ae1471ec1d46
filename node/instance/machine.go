package instance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/instance/emulator"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/state"
	disks "github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// What is in the folder of a machine.
	seedDir     = "seed"         // what cloud-init is told
	monitorEnd  = "qmp"          // the emulator's socket
	emulatorLog = "emulator.log" // what the emulator itself says
	memoryFile  = "memory"       // what a machine had in memory when it was hibernated; it wakes with that once
	wakingFile  = "memory.waking"
	// monitorEvery is how often one is asked how far it is.
	monitorEvery = 100 * time.Millisecond
	// memoryReserve is how much more of the disk has to be free than a machine's memory takes, for that to be kept.
	memoryReserve = 1 << 30
)

// machine is a virtual machine on the volume of its name. Its log is what it has said on its first serial line.
type machine struct{ *hosted }

// hydrate has the volume here that the record names: none of its bytes need be. Where it names none, one is made, and which
// that is going to be is noted before: another of the name is somebody else's.
func (m machine) hydrate(ctx context.Context, e entry) error {
	base, body, err := m.own(ctx)
	if err != nil {
		return err
	}
	spec := disks.Spec{ID: body.Disk, Takeover: e.Takeover}
	if made := body.Disk == (content.VolumeID{}); made {
		if err := spec.From.UnmarshalText([]byte(e.Spec.From)); err != nil {
			return err
		}
		spec.Size, spec.ID, spec.Takeover = e.Spec.Disk, e.Disk, false
		spec.ID = spec.NewID()
		if err := m.change(func(e *entry) error { e.Disk = spec.ID; return nil }); err != nil {
			return err
		}
	}
	v, _, err := m.hub.cfg.Volumes.Put(ctx, m.name, spec)
	switch {
	case err != nil:
		return err
	case v.Size < e.Spec.Disk:
		return fmt.Errorf("%w: its disk has %d bytes, not %d; `grange volume resize` makes it larger once it runs", content.Differs, v.Size, e.Spec.Disk)
	case body.Disk == spec.ID:
		return nil
	}
	body.Disk = spec.ID
	return m.commit(ctx, base, body)
}

// command is the emulator's.
func (m machine) command(_ context.Context, e entry) (process.Config, error) {
	v, err := m.hub.cfg.Volumes.Get(m.name)
	if err == nil && v.Device == "" {
		err = fmt.Errorf("%w: volume %s is %s: %s", content.ErrUnavailable, m.name, v.State, v.Detail)
	}
	if err == nil {
		err = m.emulated(e, nil).WriteSeed(fmt.Sprintf("%x", e.ID), e.Spec.Keys)
	}
	if err != nil {
		return process.Config{}, err
	}
	disk, err := emulator.Disk(v.Device)
	if err != nil {
		return process.Config{}, err
	}
	incoming, err := m.incoming(e, v.Through)
	cfg, failed := m.program(e, append(m.arguments(e, disk), incoming...))
	cfg.Dir, cfg.Log = m.dir, m.path(emulatorLog)
	return cfg, errors.Join(err, failed)
}

// emulated is the machine as an emulator has it.
func (m machine) emulated(e entry, disk []string) emulator.Machine {
	out := emulator.Machine{
		Name: m.name, Disk: disk, Accel: m.hub.cfg.Emulator, Memory: e.Spec.Memory, CPUs: e.Spec.CPUs, Seed: m.path(seedDir),
		Kernel: e.Spec.Kernel, Initrd: e.Spec.Initrd, Append: e.Spec.Append,
	}
	if e.Port != 0 { // where it is reached by SSH
		out.Network = fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:22", e.Port)
	}
	return out
}

// arguments are those of the emulator, and which that is.
func (m machine) arguments(e entry, disk []string) []string {
	args := append(m.emulated(e, disk).Command(), "-chardev", "file,id=console,append=on,path="+emulator.Option(m.path(logFile)), "-serial", "chardev:console")
	return append(args, emulator.Monitor(m.path(monitorEnd))...)
}

// quoted is a path in a command of a shell.
func quoted(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }

// incoming has a machine wake with the memory that it was hibernated with. That is good until the machine goes on, and for a
// wake alone: its disk goes on from there, and older memory over it would be the end of its file systems, as would be memory
// over an older disk. A wake that failed before leaves it for the next.
func (m machine) incoming(e entry, disk uint64) ([]string, error) {
	err := ignore(os.Rename(m.path(memoryFile), m.path(wakingFile)), fs.ErrNotExist)
	if err == nil && (e.State != state.Waking || e.Slept != disk) {
		if err = ignore(os.Remove(m.path(wakingFile)), fs.ErrNotExist); err == nil && e.Slept != 0 {
			m.hub.cfg.Log.Warn("a machine boots anew: its disk is not what it was when it was hibernated", "name", m.name, "state", e.State)
		}
	}
	if err == nil {
		err = durable.SyncDir(m.dir) // before the machine writes
	}
	if _, none := os.Stat(m.path(wakingFile)); err != nil || none != nil {
		return nil, err
	}
	return []string{"-incoming", "exec:cat " + quoted(m.path(wakingFile))}, nil
}

// look is nil once the machine runs, and is ready.
func (m machine) look(ctx context.Context, e entry) error {
	if _, err := os.Stat(m.path(wakingFile)); errors.Is(err, fs.ErrNotExist) {
		return m.hosted.look(ctx, e)
	}
	return m.monitor(func(ask emulator.Asking) error {
		var status struct{ Status string }
		if err := ask("query-status", nil, &status); err != nil {
			return err
		}
		if status.Status == "inmigrate" {
			return fmt.Errorf("%w: its memory is being read", content.ErrUnavailable)
		}
		if err := errors.Join(os.Remove(m.path(wakingFile)), durable.SyncDir(m.dir)); err != nil { // before it goes on
			return err
		}
		return ask("cont", nil, nil)
	})
}

// part keeps the memory of a machine that is hibernated, where the disk has room for it; another is told that its power
// button was pressed.
func (m machine) part(ctx context.Context, e entry) error {
	if e.State == state.Obliterating || e.Undoing { // nothing that it could still write is wanted
		return nil
	}
	free, _, err := cache.DiskFree(m.dir)
	if err != nil {
		return err
	}
	if e.State == state.Hibernating && int64(free) > e.Spec.Memory+memoryReserve {
		if err = m.monitor(func(ask emulator.Asking) error { return m.keep(ctx, ask) }); err == nil {
			return nil
		}
		err = fmt.Errorf("its memory is not kept: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, e.Spec.GraceTime())
	defer cancel()
	if told := m.monitor(func(ask emulator.Asking) error { return ask("system_powerdown", nil, nil) }); told != nil {
		return errors.Join(err, told)
	}
	_ = m.proc.Wait(ctx) // how it ends tells nothing, and whether it has is looked at by who asks
	return err
}

// keep writes the memory of a machine that stands still from then on.
func (m machine) keep(ctx context.Context, ask emulator.Asking) error {
	part := m.path(memoryFile + ".part")
	begun, err := isKept(ask)
	if err == nil && !begun {
		err = errors.Join(ignore(os.Remove(m.path(memoryFile)), fs.ErrNotExist), ask("stop", nil, nil))
	}
	if err == nil && !begun {
		err = ask("migrate", map[string]any{"uri": "exec:cat > " + quoted(part) + " && sync -d " + quoted(part)}, nil)
	}
	for err == nil {
		var now struct {
			Status string
			Error  string `json:"error-desc"`
		}
		switch err = ask("query-migrate", nil, &now); {
		case err != nil:
		case now.Status == "completed":
			if err = m.slept(); err == nil {
				err = os.Rename(part, m.path(memoryFile))
			}
			if begun { // and renamed
				err = ignore(err, fs.ErrNotExist)
			}
			if err == nil {
				return ask("quit", nil, nil)
			}
		case now.Status == "failed" || now.Status == "cancelled":
			err = fmt.Errorf("its memory can't be written: %s", now.Error)
		case !m.wait(ctx, monitorEvery, nil):
			err = context.Cause(ctx)
		}
	}
	return errors.Join(err, ask("cont", nil, nil), ignore(os.Remove(part), fs.ErrNotExist))
}

// isKept reports whether an earlier start of the node has begun to keep the memory.
func isKept(ask emulator.Asking) (bool, error) {
	var machine, memory struct{ Status string }
	err := errors.Join(ask("query-status", nil, &machine), ask("query-migrate", nil, &memory))
	return machine.Status == "postmigrate" || slices.Contains([]string{"setup", "active", "device"}, memory.Status), err
}

// slept notes which disk the memory of a machine that stands still goes with.
func (m machine) slept() error {
	v, err := m.hub.cfg.Volumes.Get(m.name)
	if err != nil {
		return err
	}
	return m.change(func(e *entry) error { e.Slept = v.Through; return nil })
}

// monitor talks with the emulator.
func (m machine) monitor(talk func(emulator.Asking) error) error {
	return emulator.Talk(m.path(monitorEnd), talk)
}

// dehydrate has the bucket have what the machine has written.
func (m machine) dehydrate(ctx context.Context, _ entry) error {
	if _, _, err := m.own(ctx); err != nil {
		return err
	}
	return m.detach(ctx)
}

func (m machine) detach(ctx context.Context) error {
	v, err := m.hub.cfg.Volumes.Detach(ctx, m.name, false)
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	if err == nil && v.State == disks.StateDetached {
		err = fmt.Errorf("%w: what was written to volume %s did not get into the bucket: %s", content.ErrUnavailable, m.name, v.Detail)
	}
	return err
}

// remove lets go of the volume; one that was made for a machine which never ran goes, as it does for good.
func (m machine) remove(ctx context.Context, e entry, forGood bool) error {
	made := e.Disk != (content.VolumeID{})
	if made && (forGood || e.Undoing) {
		return m.hub.cfg.Volumes.Remove(ctx, m.name, disks.RemoveSpec{Purge: true, ID: e.Disk})
	}
	if e.State == state.Obliterating { // it is gone, or another's
		return nil
	}
	return m.detach(ctx)
}
