package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// programVariable makes of the test binary one of the programs below.
const programVariable = "GRANGE_VM_TEST"

const muchLines = 200_000

func programs() map[string]func() int {
	return map[string]func() int{
		"exits 0": func() int { return 0 },
		"exits 3": func() int { return 3 },
		"panics":  func() int { panic("in the guest") },
		"hangs": func() int {
			fmt.Println("hangs")
			<-time.After(time.Hour)
			return 0
		},
		"prints much": func() int {
			for i := range muchLines {
				fmt.Printf("line %d of many\n", i)
			}
			return 0
		},
		"runs a guest": func() int {
			status, err := Run(context.Background(), guest("hangs", os.Stdout))
			fmt.Println(status, err)
			return 1
		},
		"reads": func() int {
			file, err := os.ReadFile("folder/file")
			disk, err2 := os.ReadFile("/dev/vdb")
			fmt.Printf("%s %s %v\n", file, bytes.TrimRight(disk, "\x00"), errors.Join(err, err2))
			return 0
		},
		"crashes the kernel": func() int {
			fmt.Println(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
			return 0
		},
	}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(programVariable); name == "main" {
		os.Exit(Main(m, Config{}))
	} else if name != "" {
		os.Exit(programs()[name]())
	}
	os.Exit(m.Run())
}

// guest is a small one, for the program of that name.
func guest(name string, output io.Writer) Config {
	return Config{Binary: "/proc/self/exe", Env: []string{programVariable + "=" + name}, Output: output, MemoryMiB: 256, CPUs: 1}
}

func boot(t *testing.T, name string) (status int, output string, err error) {
	t.Helper()
	var out bytes.Buffer
	status, err = Run(t.Context(), guest(name, &out))
	return status, out.String(), err
}

func TestRunReturnsTheStatus(t *testing.T) {
	var group errgroup.Group // two machines side by side
	for name, want := range map[string]int{"exits 0": 0, "exits 3": 3} {
		group.Go(func() error {
			if status, out, err := boot(t, name); status != want || err != nil {
				return fmt.Errorf("%s: status %d, %w\n%s", name, status, err, out)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestRunShowsAPanic(t *testing.T) {
	status, out, err := boot(t, "panics")
	if status != 2 || err != nil || !strings.Contains(out, "panic: in the guest") || !strings.Contains(out, "goroutine 1") {
		t.Fatalf("status %d, %v\n%s", status, err, out)
	}
}

func TestRunStreamsAllOutput(t *testing.T) {
	_, out, err := boot(t, "prints much")
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Collect(strings.Lines(out))
	if len(lines) != muchLines || lines[muchLines-1] != fmt.Sprintf("line %d of many\n", muchLines-1) {
		t.Fatalf("%d lines, want %d", len(lines), muchLines)
	}
}

func TestRunGivesFilesAndDisks(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk,raw")
	err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), []byte("a file"), 0o600), os.WriteFile(disk, []byte("a disk"), 0o600), os.Truncate(disk, 4096))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c := guest("reads", &out)
	c.Files, c.Disks = map[string]string{"folder": dir}, []string{disk}
	if _, err := Run(t.Context(), c); err != nil || out.String() != "a file a disk <nil>\n" {
		t.Fatalf("%q, %v", out.String(), err)
	}
}

func TestRunEndsAGuestThatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	_, err := Run(ctx, guest("hangs", io.MultiWriter(&out, ending(cancel))))
	if !errors.Is(err, ErrNoStatus) || !errors.Is(err, context.Canceled) || out.String() != "hangs\n" {
		t.Fatalf("%q, %v, want what it printed and that it was cancelled", out.String(), err)
	}
	c := guest("hangs", nil)
	c.Timeout = time.Second
	if _, err := Run(t.Context(), c); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want the end of time", err)
	}
}

// TestRunBootsAgainWhatHangs gives no try the time to begin.
func TestRunBootsAgainWhatHangs(t *testing.T) {
	c := guest("exits 0", nil)
	c.begin = time.Millisecond
	if _, err := Run(t.Context(), c); !errors.Is(err, errNotBegun) || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want tries that ended long before the time of the whole run", err)
	}
}

// ending calls itself at the first output.
type ending func()

func (end ending) Write(b []byte) (int, error) {
	end()
	return len(b), nil
}

// TestKillLeavesNoGuest kills a process that runs a guest and finds its orphan,
// whose parent the test becomes, dead.
func TestKillLeavesNoGuest(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), programVariable+"=runs a guest")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "hangs\n" {
		t.Errorf("%q, %v, want the guest's output", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the error is that it was killed
	var status unix.WaitStatus
	if _, err := unix.Wait4(-cmd.Process.Pid, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
		t.Fatalf("qemu ended with %v, %v, want SIGKILL", status, err)
	}
}

func TestRunShowsTheLastWordsOfAKernel(t *testing.T) {
	status, _, err := boot(t, "crashes the kernel")
	if !errors.Is(err, ErrNoStatus) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Fatalf("status %d, %v, want a panic of the kernel", status, err)
	}
}

// TestGuestHasTheTools is run twice: outside it runs itself inside, as Main does
// for a whole package.
func TestGuestHasTheTools(t *testing.T) {
	if !Inside() {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestGuestHasTheTools$", "-test.v", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), programVariable+"=main")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestGuestHasTheTools")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, script := range []string{
		"test -c /dev/ublk-control && test -b /dev/nbd0 && test -b /dev/loop0",
		"fio --version && nbdkit --version && nbdkit memory --dump-plugin && nbd-client -V",
		"truncate -s 16M disk && mkfs.ext4 -q disk && mount disk /mnt && cp /init /mnt && umount /mnt && e2fsck -fn disk",
		"ip addr show lo | grep 127.0.0.1",
	} {
		if out, err := exec.CommandContext(t.Context(), "bash", "-ec", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

func TestMainBootsNothingForNoTests(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestOfAnotherPackage$")
	// Without a path no machine could boot.
	cmd.Env = []string{programVariable + "=main", "PATH="}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("no tests to run")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestMissingNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := missing("no-such-command:its-package another:its-package")
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "apt-get install its-package:") {
		t.Fatal(err)
	}
}

func TestQuotedWordsStayWhole(t *testing.T) {
	c := Config{Env: []string{"A=it's $HOME"}, Args: []string{"a b", "", "'", "\n*"}}
	script := strings.Replace(c.script(), "exec ./program", `printf '%s|' "$A"`, 1)
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script).Output()
	if err != nil || string(out) != "it's $HOME|a b||'|\n*|" {
		t.Fatalf("%q, %v", out, err)
	}
}

func TestArchiveUnpacks(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "a/b"), 0o755), os.WriteFile(filepath.Join(from, "a/b/c"), []byte("12345"), 0o640)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := newArchive(&b)
	a.text("x/y", "text")
	a.symlink("x/z", "y")
	a.copy("tree", from)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	busybox, err := look("busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), busybox, "cpio", "-id")
	cmd.Dir, cmd.Stdin = to, io.Reader(&b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"x/y": "text", "x/z": "text", "tree/a/b/c": "12345"} {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
