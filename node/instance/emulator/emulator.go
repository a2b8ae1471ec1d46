// Package emulator says how machines are run on a node's host: the arguments of the emulator that all of them have, and what
// cloud-init finds in them.
package emulator

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/fetch/setup"
)

const (
	// Program is what machines run in.
	Program = "qemu-system-x86_64"
	// Plain is the Accel that every host has: none.
	Plain = "tcg"
	// cpusDefault is what a machine has of which nothing is said.
	cpusDefault = 1
	// reconnectSeconds is how long an emulator waits for a node that is away: as a guest's read does.
	reconnectSeconds = int(setup.IOTimeoutDefault / time.Second)
)

// Machine is what all machines have in common.
type Machine struct {
	Name string
	// Accel is how it is run, as in qemu's -accel.
	Accel string
	// Memory is in bytes; no CPUs are one.
	Memory int64
	CPUs   int
	// Kernel is booted, with Initrd and Append, in place of what the disk has for that; "" for none.
	Kernel, Initrd, Append string
	// Disk are the options of its disk, which is called disk.
	Disk []string
	// Seed is a folder for cloud-init.
	Seed string
	// Network are options of its network, which this host's user has.
	Network string
}

// Command is the emulator with its arguments, but for those of the console. Where devices are on the bus is by their order.
func (m Machine) Command() []string {
	args := append([]string{
		Program, "-name", m.Name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,accel=" + m.Accel, "-cpu", "max",
		"-m", strconv.FormatInt(m.Memory>>20, 10) + "M", "-smp", strconv.Itoa(cmp.Or(m.CPUs, cpusDefault)), "-device", "virtio-rng-pci",
	}, m.Disk...)
	args = append(args, "-device", "virtio-blk-pci,drive=disk",
		"-drive", "if=virtio,format=vvfat,read-only=on,label=CIDATA,dir="+Option(m.Seed),
		"-netdev", "user,id=net"+m.Network, "-device", "virtio-net-pci,netdev=net")
	for flag, value := range map[string]string{"-kernel": m.Kernel, "-initrd": m.Initrd, "-append": m.Append} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	return args
}

// WriteSeed writes what cloud-init is told, see its NoCloud source, into the machine's folder for that.
func (m Machine) WriteSeed(id string, keys []string) error {
	if err := os.MkdirAll(m.Seed, 0o700); err != nil {
		return err
	}
	let, err := json.Marshal(keys) // JSON is YAML
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"meta-data": fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", id, m.Name),
		"user-data": fmt.Sprintf("#cloud-config\nssh_authorized_keys: %s\n", let),
	} {
		if err := os.WriteFile(filepath.Join(m.Seed, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Disk are the options of a disk that is a device of this host, or is served over NBD.
func Disk(device string) ([]string, error) {
	disk, err := backend(device)
	disk["node-name"], disk["discard"] = "disk", "unmap"
	b, failed := json.Marshal(disk)
	return []string{"-blockdev", string(b)}, errors.Join(err, failed)
}

// Copy are the options of a disk that begins as a device, and whose writes go to a file in the emulator's TMPDIR that is gone
// with it.
func Copy(device string) ([]string, error) {
	disk, err := backend(device)
	b, failed := json.Marshal(map[string]any{"driver": "raw", "file": disk})
	return []string{"-drive", "if=none,id=disk,snapshot=on,file=json:" + Option(string(b))}, errors.Join(err, failed)
}

// backend is a device as the emulator takes it. For one that is served over NBD it waits for the node to come back.
func backend(device string) (map[string]any, error) {
	u, err := url.Parse(device)
	if err != nil || u.Scheme != "nbd+unix" {
		return map[string]any{"driver": "host_device", "filename": device, "cache": map[string]any{"direct": true}}, err
	}
	return map[string]any{
		"driver": "nbd", "export": strings.TrimPrefix(u.Path, "/"), "reconnect-delay": reconnectSeconds, "cache": map[string]any{"direct": true},
		"server": map[string]any{"type": "unix", "path": u.Query().Get("socket")},
	}, nil
}

// Option is a text in an option of the emulator.
func Option(text string) string { return strings.ReplaceAll(text, ",", ",,") }
