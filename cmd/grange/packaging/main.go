// Command packaging makes what is handed to users: packages of Debian and of RPM, archives,
// an OCI image, and the sums of all. Two runs of one commit, with one version of Go, give
// the same bytes. It is run by `make packages`, in the root of the repository.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// nfpm makes the packages; it is run, and no part of the module.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2"

// source is where this program and what it packs are, from the root.
const source = "cmd/grange/packaging"

// all are the targets of a release. Windows and macOS run seeds.
const all = "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64"

// host is the target that this machine runs.
const host = runtime.GOOS + "/" + runtime.GOARCH

func main() {
	out := flag.String("out", "bin/packages", "folder for what is made; what it has goes")
	targets := flag.String("targets", all, "of which systems, as GOOS/GOARCH,…")
	flag.Parse()
	if err := run(context.Background(), *out, strings.Split(*targets, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "packaging:", err)
		os.Exit(1)
	}
}

// release is one version for all targets.
type release struct {
	out, stage string // folders; stage has a folder for each target
	version    string
	made       time.Time // the commit's time, which is that of all files
}

func run(ctx context.Context, out string, targets []string) (err error) {
	r := release{out: out}
	if r.version, r.made, err = versionOf(ctx); err != nil {
		return err
	}
	if r.stage, err = os.MkdirTemp("", "grange-packaging-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.stage)
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	if err := r.common(ctx); err != nil {
		return err
	}
	for _, target := range targets { // one after the other: each build uses all processors
		if err := r.build(ctx, target); err != nil {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	var work errgroup.Group
	for _, target := range targets {
		work.Go(func() error { return r.archive(target) })
		if strings.HasPrefix(target, "linux/") {
			for _, format := range []string{"deb", "rpm"} {
				work.Go(func() error { return r.pack(ctx, target, format) })
			}
		}
	}
	work.Go(func() error { return r.image(targets) })
	if err := work.Wait(); err != nil {
		return err
	}
	return sums(out)
}

// versionOf is v1.2.3's 1.2.3 where a commit is tagged so, else one that is lower than any
// release and rises with time.
func versionOf(ctx context.Context) (version string, made time.Time, err error) {
	at, err := output(ctx, "git", "show", "-s", "--format=%ct %h", "--abbrev=12", "HEAD")
	if err != nil {
		return "", made, err
	}
	seconds, commit, _ := strings.Cut(at, " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return "", made, fmt.Errorf("the commit's time: %w", err)
	}
	made = time.Unix(n, 0).UTC()
	if tag, err := output(ctx, "git", "describe", "--tags", "--exact-match", "--match", "v[0-9]*"); err == nil {
		return strings.ReplaceAll(strings.TrimPrefix(tag, "v"), "-", "~"), made, nil
	}
	return "0.0.0~" + made.Format("20060102150405") + "." + commit, made, nil
}

// common makes what is the same for all targets: pages, completions, and what stands here.
func (r release) common(ctx context.Context) error {
	here := filepath.Join(r.stage, "here")
	tool := filepath.Join(r.stage, "tool")
	for _, dir := range []string{"man", "completion"} {
		if err := os.MkdirAll(filepath.Join(here, dir), 0o755); err != nil {
			return err
		}
	}
	if err := compile(ctx, tool, host); err != nil {
		return err
	}
	if _, err := output(ctx, tool, "manual", filepath.Join(here, "man")); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(here, "man", "*.1"))
	for _, page := range pages {
		err = errors.Join(err, r.compress(page))
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, failed := output(ctx, tool, "completion", shell)
		err = errors.Join(err, failed, os.WriteFile(filepath.Join(here, "completion", "grange."+shell), []byte(script+"\n"), 0o644))
	}
	changes := fmt.Sprintf("grange (%s) unstable; urgency=medium\n\n  * See the commits of the repository.\n\n -- The grange authors <authors@grange.invalid>  %s\n", r.version, r.made.Format(time.RFC1123Z))
	changelog := filepath.Join(here, "changelog")
	return errors.Join(err, os.WriteFile(changelog, []byte(changes), 0o644), r.compress(changelog),
		os.CopyFS(here, os.DirFS(source)), copyFile("README.md", filepath.Join(here, "README.md")), copyFile("LICENSE", filepath.Join(here, "LICENSE")))
}

// program is what the command is called in a system.
func program(target string) string {
	if strings.HasPrefix(target, "windows/") {
		return "grange.exe"
	}
	return "grange"
}

func (r release) dir(target string) string {
	return filepath.Join(r.stage, strings.ReplaceAll(target, "/", "_"))
}

// build compiles for a target, beside a copy of what is common, all with the commit's time.
func (r release) build(ctx context.Context, target string) error {
	dir := r.dir(target)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(r.stage, "here"))); err != nil {
		return err
	}
	to := filepath.Join(dir, program(target))
	var err error
	if target == host {
		err = copyFile(filepath.Join(r.stage, "tool"), to)
	} else {
		err = compile(ctx, to, target)
	}
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		mode := fs.FileMode(0o644) // whatever the umask is here
		if err == nil && (d.IsDir() || path == to) {
			mode = 0o755
		}
		return errors.Join(err, os.Chmod(path, mode), os.Chtimes(path, r.made, r.made))
	})
}

// compile builds the command, static and with nothing of this machine in it.
func compile(ctx context.Context, to, target string) error {
	system, processor, _ := strings.Cut(target, "/")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", to, "./cmd/grange")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+processor, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-buildvcs=true") // in place of those that `go env -w` has set
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// pack makes a package of a format.
func (r release) pack(ctx context.Context, target, format string) error {
	out, err := filepath.Abs(r.out)
	if err != nil {
		return err
	}
	_, processor, _ := strings.Cut(target, "/")
	cmd := exec.CommandContext(ctx, "go", "run", nfpm, "package", "--config", "nfpm.yaml", "--packager", format, "--target", out)
	cmd.Dir = r.dir(target)
	cmd.Env = append(os.Environ(), "VERSION="+r.version, "ARCH="+processor, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.made.Unix()))
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", format, err, said)
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// output is what a program prints, less the end of its last line.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		said := ""
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			said = ": " + string(exit.Stderr)
		}
		return "", fmt.Errorf("%s %s: %w%s", name, strings.Join(args, " "), err, said)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// names lists a folder's files, sorted.
func names(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	slices.Sort(out)
	return out, err
}
