// Package support gathers what a report of a fault needs into one archive: what a node says
// of itself, if it answers, and what there is to know of its host. Each part has a time and
// a size, secrets are taken out, and what could not be had is said.
package support

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/secrets"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/cache"
)

const (
	// timeoutDefault bounds what each part takes, and as all are asked for at once, the whole:
	// a store that does not answer is known in less.
	timeoutDefault = 10 * time.Second
	// partMax bounds each part, in bytes before it is compressed; of what is longer the end
	// goes, of logs the beginning.
	partMax = 8 << 20
	// logLines are how many lines of the system's log are asked for, entriesMax how many
	// files of the data folder are named.
	logLines   = "5000"
	entriesMax = 5000
)

// Config says what is gathered.
type Config struct {
	// Client asks the node.
	Client *client.Client
	// Here says that the node is of this host; else nothing of the host is gathered.
	Here bool
	// Data is the node's data folder, and ConfigFile what it is set by.
	Data, ConfigFile, Version string
	// Env is this process's environment.
	Env []string
	// Doctor says what a doctor finds.
	Doctor func(context.Context) ([]byte, error)
	// Timeout bounds each part; 0 is ten seconds.
	Timeout time.Duration
}

// part is one file of the archive.
type part struct {
	name string
	get  func(context.Context) ([]byte, error)
	log  bool // its end counts

	text []byte
	err  error
}

// Write writes the archive, a compressed tar file, and returns what could not be had, by part.
func (c Config) Write(ctx context.Context, w io.Writer) (missing map[string]string, err error) {
	var known secrets.Known
	c.learn(&known)
	parts := c.parts()
	within := cmp.Or(c.Timeout, timeoutDefault)
	asking, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("it did not come within %s", within))
	defer cancel()
	var group sync.WaitGroup
	for _, p := range parts {
		group.Go(func() {
			if p.text, p.err = p.get(asking); p.err != nil && asking.Err() != nil {
				p.err = context.Cause(asking)
			}
		})
	}
	group.Wait()
	missing = map[string]string{}
	packed := gzip.NewWriter(w)
	out := tar.NewWriter(packed)
	now := time.Now()
	add := func(name string, text []byte) {
		h := &tar.Header{Name: "grange-support/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: now}
		if err == nil {
			err = out.WriteHeader(h)
		}
		if err == nil {
			_, err = out.Write(text)
		}
	}
	for _, p := range parts {
		if p.err != nil {
			missing[p.name] = known.Hide(p.err.Error())
		}
		if text := p.bounded(&known); len(text) > 0 {
			add(p.name, text)
		}
	}
	var lacks strings.Builder
	for _, p := range parts {
		if why, is := missing[p.name]; is {
			fmt.Fprintf(&lacks, "%s: %s\n", p.name, strings.ReplaceAll(why, "\n", " "))
		}
	}
	add("missing.txt", []byte(lacks.String()))
	return missing, errors.Join(err, out.Close(), packed.Close())
}

// bounded is the text of a part without secrets, and no longer than it may be. A document that did not come whole, or is
// longer, is left out: which of its members are secret can't be told where it is cut.
func (p *part) bounded(known *secrets.Known) []byte {
	text, cut := p.text, len(p.text)-partMax
	switch document := strings.HasSuffix(p.name, ".json") && len(text) > 0; {
	case document && (cut > 0 || !json.Valid(text)):
		return fmt.Appendf(nil, "… %d bytes are left out\n", len(text))
	case document: // of instances what their users chose goes too
		return known.HideJSON(text, "env", "command", "compact", "probe", "append", "keys")
	case cut > 0 && p.log:
		text = append(fmt.Appendf(nil, "… %d bytes are left out\n", cut), text[cut:]...)
	case cut > 0:
		text = fmt.Appendf(text[:partMax:partMax], "\n… %d bytes are left out\n", cut)
	}
	return []byte(known.Hide(string(text)))
}

// learn notes the secrets of this host that are known to be some, wherever they may turn up.
func (c Config) learn(known *secrets.Known) {
	known.AddEnv(c.Env)
	home, _ := os.UserHomeDir() // without one there are no files in it
	files := []string{filepath.Join(c.Data, api.TokenName), c.ConfigFile, filepath.Join(home, ".aws", "credentials"), filepath.Join(home, ".aws", "config")}
	for _, pair := range c.Env {
		if name, value, _ := strings.Cut(pair, "="); name == "AWS_SHARED_CREDENTIALS_FILE" || name == "AWS_CONFIG_FILE" {
			files = append(files, value)
		}
	}
	beside, _ := filepath.Glob("/etc/grange/*") // as units name them for the environment, tokens, passphrases
	for _, path := range append(files, beside...) {
		known.AddFile(path)
	}
}

func (c Config) parts() []*part {
	out := []*part{
		{name: "version.txt", get: text(fmt.Sprintf("grange %s, %s, %s/%s\n", c.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH))},
		{name: "doctor.json", get: c.Doctor},
	}
	for name, path := range map[string]string{
		"status.json": "/api/status", "volumes.json": "/api/volumes", "operations.json": "/api/operations", "members.json": "/api/members", "peers.json": "/api/peers",
		"cache.json": "/api/cache", "origin.json": "/api/origin", "instances.json": "/api/instances", "images.json": "/api/images", "trees.json": "/api/trees", "snapshots.json": "/api/snapshots",
		"metrics.txt": "/metrics", "readyz.txt": "/readyz", "log.txt": "/api/support/log", "goroutines.txt": "/api/support/goroutines",
	} {
		out = append(out, &part{name: "node/" + name, get: c.ask(path), log: name == "log.txt"})
	}
	if c.Here {
		out = append(out, c.hostParts()...)
	}
	slices.SortFunc(out, func(a, b *part) int { return cmp.Compare(a.name, b.name) })
	return out
}

func text(s string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return []byte(s), nil }
}

// hostParts are what of this host a fault may come from.
func (c Config) hostParts() []*part {
	out := []*part{
		{name: "host/environment.txt", get: c.environment}, {name: "host/config.yaml", get: file(c.ConfigFile)}, {name: "host/data.txt", get: c.dataFolder},
		{name: "host/journal.txt", log: true, get: command("journalctl", "--unit", "grange", "--lines", logLines, "--no-pager", "--output", "short-iso")},
		{name: "host/kernel.txt", log: true, get: command("dmesg", "--level", "emerg,alert,crit,err,warn")},
		{name: "host/unit.txt", get: command("systemctl", "show", "grange", "--no-pager")},
		{name: "host/addresses.txt", get: command("ip", "address")}, {name: "host/routes.txt", get: command("ip", "route")}, {name: "host/sockets.txt", get: command("ss", "-tulnp")},
		{name: "host/disks.txt", get: command("df", "-hT")}, {name: "host/modules.txt", get: command("lsmod")}, {name: "host/clock.txt", get: command("timedatectl", "--no-pager")},
	}
	for _, path := range []string{
		"/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/mounts", "/proc/pressure/io", "/proc/pressure/memory", "/proc/self/limits",
		"/proc/sys/net/core/rmem_max", "/sys/module/ublk_drv/parameters/ublks_max",
	} {
		if runtime.GOOS == "linux" {
			out = append(out, &part{name: "host" + path, get: file(path)})
		}
	}
	return out
}

func (c Config) ask(path string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		if c.Client == nil {
			return nil, errors.New("there is no way to the node")
		}
		var to limited
		err := c.Client.Copy(ctx, &to, path)
		return to.b.Bytes(), err
	}
}

// limited takes a little more than partMax, and lets the rest go. It is no bytes.Buffer, whose ReadFrom has no bound.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), max(2*partMax-l.b.Len(), 0))])
	return len(p), nil
}

func file(path string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, 2*partMax))
	}
}

// command runs a program of the host; what it says when it fails is kept too.
func command(name string, args ...string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var said limited
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &said, &said, time.Second // the same, so that one goroutine writes
		if err := cmd.Run(); err != nil {
			return said.b.Bytes(), fmt.Errorf("%s: %w", name, err)
		}
		return said.b.Bytes(), nil
	}
}

// environment says which variables are set, and of those that have no secret their values.
func (c Config) environment(context.Context) ([]byte, error) {
	var b bytes.Buffer
	for _, pair := range slices.Sorted(slices.Values(c.Env)) {
		name, value, _ := strings.Cut(pair, "=")
		ours := slices.ContainsFunc([]string{"GRANGE_", "AWS_", "OTEL_", "GO", "LANG", "LC_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PATH", "INVOCATION_ID"}, func(p string) bool { return strings.HasPrefix(strings.ToUpper(name), p) })
		switch {
		case !ours: // whose it is nobody knows
		case secrets.IsName(name) || name == "GRANGE_JOIN" || strings.HasPrefix(name, "OTEL_") && strings.HasSuffix(name, "HEADERS"):
			fmt.Fprintf(&b, "%s is set\n", name)
		default:
			fmt.Fprintf(&b, "%s=%s\n", name, value)
		}
	}
	return b.Bytes(), nil
}

// dataFolder names the files of the data folder, two levels deep, with sizes, modes and owners, and no more of them than are read.
func (c Config) dataFolder(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	free, total, err := cache.DiskFree(c.Data)
	fmt.Fprintf(&b, "%d of %d bytes free (%v)\n", free, total, err)
	n := 0
	err = filepath.WalkDir(c.Data, func(path string, d fs.DirEntry, err error) error {
		rel, rerr := filepath.Rel(c.Data, path)
		if n++; err != nil || rerr != nil {
			fmt.Fprintf(&b, "%s: %v\n", path, err)
			return nil
		}
		info, ierr := d.Info()
		if ierr == nil {
			fmt.Fprintf(&b, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), rel)
		}
		switch deep := strings.Count(rel, string(filepath.Separator)); {
		case n > entriesMax || ctx.Err() != nil:
			return fs.SkipAll
		case d.IsDir() && deep >= 2:
			return fs.SkipDir
		}
		return nil
	})
	return b.Bytes(), err
}
