// Package oci is the commands that have container runtimes pull through a node.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cuelabs.dev/go/oci/ociregistry/ociref"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// Commands are those of grange oci.
type Commands struct {
	Configure configure `cmd:"" help:"Have containerd ask this node first, and the registry itself for what the node has not."`
}

const (
	// everyRegistry is containerd's name for all that have no folder of their own.
	everyRegistry = "_default"
	hostsFile     = "hosts.toml"
	// backupFile has what stood there before.
	backupFile = hostsFile + ".before-grange"
	// What is ours in a file stands between two lines.
	blockBegin, blockEnd = "# grange: begin; `grange oci configure --remove` takes this out", "# grange: end"
)

type configure struct {
	Registry []string `help:"Registries to ask this node for, as docker.io; all when not given." placeholder:"NAME" env:"-"`
	CertsDir string   `type:"path" help:"Folder of containerd's hosts.toml files: the config_path of its configuration." default:"/etc/containerd/certs.d"`
	Address  string   `help:"Where the node serves images: its --oci." default:"127.0.0.1:5050"`
	Remove   bool     `help:"Put back what was there: for the given registries, else for all." env:"-"`
}

// Run writes, or removes.
func (c *configure) Run(_ context.Context, app *ask.Node, std ask.Stdio) error {
	if host, _, err := net.SplitHostPort(c.Address); err != nil || !api.IsLoopback(host) {
		return fmt.Errorf("%w: --address %q: want HOST:PORT of loopback, as the node's --oci", ask.ErrUsage, c.Address)
	}
	for _, name := range c.Registry {
		if name != everyRegistry && !ociref.IsValidHost(name) {
			return fmt.Errorf("%w: --registry %q: want the name of a registry, as docker.io, or %s", ask.ErrUsage, name, everyRegistry)
		}
	}
	names := c.Registry
	switch {
	case len(names) > 0:
	case c.Remove:
		files, err := filepath.Glob(filepath.Join(c.CertsDir, "*", hostsFile))
		if err != nil {
			return err
		}
		for _, f := range files {
			names = append(names, filepath.Base(filepath.Dir(f)))
		}
	default:
		names = []string{everyRegistry}
	}
	did := report{Files: map[string]string{}}
	for _, name := range names {
		file := filepath.Join(c.CertsDir, name, hostsFile)
		done, err := c.one(filepath.Dir(file))
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if done != "" {
			did.Files[file] = done
		}
	}
	if !c.Remove {
		did.Hint = c.hint()
	}
	doc, err := json.Marshal(did)
	if err != nil {
		return err
	}
	return ask.Show(app, std, doc, func(w io.Writer, r report) {
		for _, file := range slices.Sorted(maps.Keys(r.Files)) {
			fmt.Fprintf(w, "%s: %s\n", file, r.Files[file])
		}
		if r.Hint != "" {
			fmt.Fprintln(w, r.Hint)
		}
	})
}

// report is what was done to which files.
type report struct {
	Files map[string]string `json:"files"`
	Hint  string            `json:"hint,omitempty"` // what containerd wants beside
}

// hint says what containerd wants beside.
func (c *configure) hint() string {
	config, err := os.ReadFile("/etc/containerd/config.toml")
	if err == nil && bytes.Contains(config, []byte("config_path")) {
		return ""
	}
	return fmt.Sprintf("containerd reads this once its config.toml has config_path = %q under its registry section, and it was restarted; ctr wants --hosts-dir %s", c.CertsDir, c.CertsDir)
}

// one does the file of one registry, and says what.
func (c *configure) one(dir string) (string, error) {
	file, backup := filepath.Join(dir, hostsFile), filepath.Join(dir, backupFile)
	now, err := os.ReadFile(file)
	absent := errors.Is(err, fs.ErrNotExist)
	if err != nil && !absent {
		return "", err
	}
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(file); err == nil { // it may have credentials
		mode = info.Mode().Perm()
	}
	without, had := strip(now)
	if bytes.Contains(without, []byte(blockBegin)) {
		return "", fmt.Errorf("%w: the line %q has no line %q behind it, or stands there twice; take out what is between by hand", content.ErrInvalid, blockBegin, blockEnd)
	}
	if c.Remove {
		if !had {
			return "", nil
		}
		return putBack(file, backup, without, mode)
	}
	if bytes.Contains(without, []byte(c.table())) { // containerd refuses a file with two
		return "", fmt.Errorf("%w: it has %s already; take that out, or leave the file as it is", content.ErrExists, c.table())
	}
	next := insert(without, c.block())
	if bytes.Equal(now, next) {
		return "as it should be already", nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if !absent && !had {
		if err := durable.WriteFile(backup, now, mode); err != nil {
			return "", err
		}
	}
	return "written", durable.WriteFile(file, next, mode)
}

// putBack has there what was there before, with what was changed since by others.
func putBack(file, backup string, without []byte, mode fs.FileMode) (string, error) {
	before, err := os.ReadFile(backup)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(bytes.TrimSpace(without)) == 0:
		err = os.Remove(file)
		_ = os.Remove(filepath.Dir(file)) // unless there is something else in it
		return "removed", err
	case err == nil && bytes.Equal(before, without):
		return "put back", os.Rename(backup, file)
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return "put back, with what was changed since", durable.WriteFile(file, without, mode)
	}
	return "", err
}

// block is what is ours.
func (c *configure) block() string {
	return fmt.Sprintf("%s\n%s\n  capabilities = [\"pull\", \"resolve\"]\n%s\n", blockBegin, c.table(), blockEnd)
}

// table is what the part of a file about this node begins with.
func (c *configure) table() string { return fmt.Sprintf("[host.%q]", "http://"+c.Address) }

// strip takes what is ours out of a file.
func strip(b []byte) (rest []byte, had bool) {
	before, after, found := strings.Cut(string(b), blockBegin+"\n")
	_, after, ended := strings.Cut(after, blockEnd+"\n")
	if !found || !ended {
		return b, false
	}
	return []byte(before + after), true
}

// insert puts what is ours before the first table of a file: containerd asks hosts in their order.
func insert(b []byte, block string) []byte {
	at := 0
	for line := range strings.Lines(string(b)) {
		name := strings.TrimLeft(line, " \t[")
		if strings.HasPrefix(strings.TrimSpace(line), "[") && (strings.HasPrefix(name, "host") || strings.HasPrefix(name, "header")) { // no part of a list
			break
		}
		at += len(line)
	}
	head := string(b[:at])
	if head != "" && !strings.HasSuffix(head, "\n") {
		head += "\n"
	}
	return []byte(head + block + string(b[at:]))
}
