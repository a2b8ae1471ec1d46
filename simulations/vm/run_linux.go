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
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// endGrace is how long qemu may take to end once it is told to.
	endGrace = 5 * time.Second
	// bootTries: of some dozens of guests on a busy machine one trips over the
	// kernel changing its own code under a second emulated processor, before it
	// comes to the first program.
	bootTries = 3
	// beginDefault: a guest begins within seconds, on a busy machine within one
	// minute. One of some thousands hangs before, with a processor at work for ever.
	beginDefault = 3 * time.Minute
)

// errNotBegun says that a guest ended before its first program ran, or hung.
var errNotBegun = errors.New("the guest did not come to its first program")

// Run boots a guest, runs the program in it and returns its exit status, which
// is above 128 when a signal ended it. The error says why there is none: a piece
// of the machine is missing, the guest's kernel crashed, or time was up, which is
// also context.DeadlineExceeded. When the status is not 0, the output ends with what
// the kernel said meanwhile. Nothing of the guest is left when Run returns,
// nor when this process is killed.
func Run(ctx context.Context, c Config) (int, error) {
	c = c.withDefaults()
	h, initrd, err := bootable(ctx, c, "run", c.script())
	if err != nil {
		return 0, err
	}
	defer initrd.Close()
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	for try := 1; ; try++ {
		status, err := h.boot(ctx, c, initrd)
		if !errors.Is(err, errNotBegun) || try == bootTries || ctx.Err() != nil {
			return status, err
		}
		fmt.Fprintf(os.Stderr, "booted again: %v\n", err)
	}
}

// bootable makes what a guest boots from, to be closed after its end; init runs the
// script.
func bootable(ctx context.Context, c Config, script, text string) (host, *os.File, error) {
	if err := c.validate(); err != nil {
		return host{}, nil, err
	}
	h, err := prepare(ctx, kernelFor(c.Newest), c.Output)
	if err != nil {
		return host{}, nil, err
	}
	initrd, err := memory("initrd")
	if err != nil {
		return host{}, nil, err
	}
	if err := h.initrd(initrd, c, script, text); err != nil {
		return host{}, nil, errors.Join(fmt.Errorf("make an initial RAM disk: %w", err), initrd.Close())
	}
	return h, initrd, nil
}

// boot is one try of Run.
func (h *host) boot(ctx context.Context, c Config, initrd *os.File) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	console, err := memory("console")
	if err != nil {
		return 0, err
	}
	defer console.Close()
	statusReader, statusWriter, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer statusReader.Close()

	args := append(h.machine(c, inherited(0)),
		"-chardev", "file,id=console,path="+inherited(1), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "file,id=output,path=/dev/fd/1", "-device", "virtserialport,chardev=output,nr=1",
		"-chardev", "file,id=status,path="+inherited(2), "-device", "virtserialport,chardev=status,nr=2")
	var said bytes.Buffer
	cmd := command(ctx, args)
	cmd.ExtraFiles = []*os.File{initrd, console, statusWriter}
	// A pipe of its own: qemu makes what it writes to non-blocking.
	cmd.Stdout, cmd.Stderr = struct{ io.Writer }{c.Output}, &said

	tooLate := time.AfterFunc(c.begin, cancel)
	defer tooLate.Stop()
	status, err := follow(cmd, statusReader, tooLate.Stop, cancel)
	if err == nil && status == 0 {
		return 0, nil
	}
	words, readErr := lastWords(console)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("%w: %w\n%s%s", ErrNoStatus, err, said.String(), words), readErr)
	}
	_, err = io.WriteString(c.Output, words)
	return status, errors.Join(err, readErr)
}

// lastWords is the end of what the kernel printed, under a title.
func lastWords(console *os.File) (string, error) {
	const most = 16 << 10 // some stacks
	info, err := console.Stat()
	if err != nil {
		return "", err
	}
	words := make([]byte, min(info.Size(), most))
	if _, err := console.ReadAt(words, info.Size()-int64(len(words))); err != nil {
		return "", err
	}
	words = bytes.TrimSpace(bytes.ReplaceAll(words, []byte("\r"), nil))
	if len(words) == 0 {
		return "", nil
	}
	return "The guest's kernel said:\n" + string(words) + "\n", nil
}

// follow starts qemu, tells of the guest's first program, ends qemu when the status
// has come, and returns that.
func follow(cmd *exec.Cmd, status *os.File, begun func() bool, end func()) (int, error) {
	// The kernel ends qemu when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	for _, f := range cmd.ExtraFiles[2:] {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return 0, err
	}
	lines := make(chan string, 2)
	go func() {
		defer end()
		r := bufio.NewReader(status)
		for range cap(lines) {
			text, _ := r.ReadString('\n') // none at the end of qemu
			begun()
			lines <- strings.TrimSpace(text)
		}
	}()
	err = cmd.Wait()
	switch first, text := <-lines, <-lines; {
	case first == "":
		return 0, fmt.Errorf("%w: %w", errNotBegun, errors.Join(err, io.ErrUnexpectedEOF))
	case text == "":
		return 0, fmt.Errorf("qemu ended: %w", errors.Join(err, io.ErrUnexpectedEOF))
	default:
		return strconv.Atoi(text)
	}
}

// command is a qemu that is asked to end with ctx, and ends with this process.
func command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// inherited is the path that a child opens to get its nth extra file.
func inherited(n int) string { return fmt.Sprintf("/dev/fd/%d", 3+n) }

// memory returns a file without a name, which ends with its last user.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Shell boots a guest with a shell on the terminal that in and out are, until
// that ends. Of the config the binary is not used, nor its arguments, the output
// and the time.
func Shell(ctx context.Context, c Config, in, out *os.File) error {
	c.Output = out
	c = c.withDefaults()
	h, initrd, err := bootable(ctx, c, "shell", shellScript(in))
	if err != nil {
		return err
	}
	defer initrd.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := command(ctx, append(h.machine(c, inherited(0)), "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"))
	cmd.ExtraFiles = []*os.File{initrd}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	return cmd.Run()
}

// shellScript begins a shell that knows the size and kind of the terminal.
func shellScript(terminal *os.File) string {
	size := ""
	if w, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ); err == nil && w.Row > 0 {
		size = fmt.Sprintf("stty rows %d cols %d\n", w.Row, w.Col)
	}
	return size + "export TERM=" + quote(os.Getenv("TERM")) + " PS1='guest:\\w# '\n" +
		"echo \"Linux $(uname -r), modules: $(lsmod | awk 'NR > 1 { printf \"%s \", $1 }')\"\necho 'exit ends it.'\nexec bash --norc\n"
}
