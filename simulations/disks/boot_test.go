package disks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDebianBoots starts the userland of a Debian image on the disk of a volume,
// its systemd the first process of a namespace, up to the login prompt.
func TestDebianBoots(t *testing.T) {
	n := begin(t)
	device := n.must(t, "volume", "create", "vm", "--from", "image:debian")
	const root = "/tmp/root"
	console, name := terminal(t)
	shell(t, fmt.Sprintf("mkdir -p %s && mount %s %[1]s && mount --rbind /dev %[1]s/dev && mount --bind %[3]s %[1]s/dev/console", root, device, name))
	system := exec.Command("/sbin/init")
	system.Env = []string{"container=guest", "TERM=dumb"}
	system.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC, Setsid: true,
	}
	if err := system.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- system.Wait()
		cancel()
	}()
	said := await(ctx, t, console, "login:")
	if !strings.Contains(said, "Debian GNU/Linux") {
		t.Errorf("the console says: %s", said)
	}
	t.Logf("%s", n.must(t, "volume", "show", "vm"))
	if err := system.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended // it was killed
	shell(t, "umount -R "+root+" && e2fsck -fp "+device+" && e2fsck -fn "+device)
	n.must(t, "volume", "rm", "vm")
}

// terminal makes a pair of terminals and returns one, and the name of the other.
func terminal(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	number, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/dev/pts/%d", number)
	other, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0) // while nobody has it open, f reads errors
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return f, name
}

// await reads until the terminal says a word, and returns all that it said.
func await(ctx context.Context, t *testing.T, f *os.File, word string) string {
	t.Helper()
	bytes := make(chan byte, 4096)
	go func() {
		defer close(bytes)
		for r := bufio.NewReader(f); ; {
			b, err := r.ReadByte()
			if err != nil {
				return // it was closed, or nobody has the other end
			}
			bytes <- b
		}
	}()
	var said strings.Builder
	for {
		select {
		case b, ok := <-bytes:
			if !ok {
				t.Fatalf("the console ends without %q: %s", word, said.String())
			}
			said.WriteByte(b)
			if strings.HasSuffix(said.String(), word) {
				return said.String()
			}
		case <-ctx.Done():
			t.Fatalf("no %q on the console: %s", word, said.String())
		}
	}
}
