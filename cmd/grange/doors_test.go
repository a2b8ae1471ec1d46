//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/nbd"
)

// qemuIO is a client of a volume that comes again when its connection ends.
type qemuIO struct {
	in   io.Writer
	says *bufio.Scanner
}

func openQEMU(t *testing.T, socket, volume string) *qemuIO {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", "--image-opts", fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=%s,reconnect-delay=30", socket, volume))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = io.WriteString(in, "quit\n")
		_ = cmd.Wait()
	})
	return &qemuIO{in, bufio.NewScanner(out)}
}

// do runs one command of qemu-io and fails the test unless it did what it should.
func (q *qemuIO) do(t *testing.T, command string) {
	t.Helper()
	if _, err := io.WriteString(q.in, command+"\n"); err != nil {
		t.Fatal(err)
	}
	for q.says.Scan() {
		switch text := q.says.Text(); {
		case strings.Contains(text, "ops;"):
			return
		case strings.Contains(text, "failed"), strings.Contains(text, "rror"):
			t.Fatalf("%s: %s", command, text)
		}
	}
	t.Fatalf("%s: qemu-io has ended", command)
}

// TestHandoverKeepsNBDClients: one that is connected comes again and finds its data; who
// connects at any moment of it is never refused, over the socket and over TCP.
func TestHandoverKeepsNBDClients(t *testing.T) {
	s := serveNode(t, "--nbd", "127.0.0.1:0", "--log-format", "json")
	data := filepath.Join(s.dir, "data")
	if code, _, complaint := command(t, "volume", "create", "v", "--size", "64M", "--transport", "nbd", "--data", data); code != 0 {
		t.Fatal(complaint)
	}
	socket := filepath.Join(data, nbd.SocketName)
	q := openQEMU(t, socket, "v")
	q.do(t, "write -P 5 0 1M")
	tcp := s.nbd
	stop, refused := make(chan bool), make(chan error)
	go func() {
		var errs error
		defer func() { refused <- errs }()
		for {
			for network, address := range map[string]string{"unix": socket, "tcp": tcp} {
				errs = errors.Join(errs, greeted(network, address))
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for i := range 3 {
		s.signal(t, syscall.SIGUSR2)
		q.do(t, "read -P 5 0 1M")
		q.do(t, fmt.Sprintf("write -P %d 2M 64k", i+1))
		s.await(t, `"msg":"serving"`)
		q.do(t, fmt.Sprintf("read -P %d 2M 64k", i+1))
		if s.nbd != tcp {
			t.Errorf("it listens on %s after a handover, and did on %s", s.nbd, tcp)
		}
	}
	close(stop)
	if err := <-refused; err != nil {
		t.Error(err)
	}
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("it ended with %v", end)
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket of a node that has stopped is still there")
	}
}

// greeted connects, and waits for the server's first words: at the second try if it came
// to the old process as that was ending.
func greeted(network, address string) error {
	for try := range 2 {
		conn, err := net.Dial(network, address)
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, err = io.ReadFull(conn, make([]byte, 18))
		conn.Close()
		if err == nil {
			return nil
		}
		if try > 0 {
			return fmt.Errorf("%s is not greeted: %w", network, err)
		}
	}
	return nil
}

// TestSocketForAGroup: mode and group are as told, and the folder stays closed.
func TestSocketForAGroup(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "disks")
	s := serveNode(t, "--nbd-socket", socket, "--nbd-group", "disk")
	group, err := groupNumber("disk")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 || int(info.Sys().(*syscall.Stat_t).Gid) != group {
		t.Errorf("%v, %v", info, err)
	}
	_, out, complaint := command(t, "volume", "create", "v", "--size", "1M", "--transport", "nbd", "--data", filepath.Join(s.dir, "data"))
	if out != "nbd+unix:///v?socket="+socket+"\n" {
		t.Errorf("clients are told %s%s", out, complaint)
	}
	s.signal(t, syscall.SIGTERM)
	s.ends(t)
}

// TestDoorsThatCannotBe are refused before anything is made, with what to do.
func TestDoorsThatCannotBe(t *testing.T) {
	root, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	long := filepath.Join(root, strings.Repeat("d", nbd.SocketPathMax-len(root)-len("//nbd.sock")+1))
	short := filepath.Join(root, "short")
	for _, x := range []struct {
		dir   string
		flags []string
		code  int
		says  string
	}{
		{long, nil, 2, "symbolic link"},
		{short, []string{"--nbd", "0.0.0.0:10809"}, 2, "--nbd-tls"},
		{short, []string{"--nbd", "nowhere"}, 2, "HOST:PORT"},
		{short, []string{"--nbd", taken.Addr().String()}, 1, "in use"},
		{short, []string{"--nbd-tls", root}, 2, "--nbd HOST:PORT"},
		{short, []string{"--nbd", "127.0.0.1:0", "--nbd-tls", root}, 1, "server-cert.pem"},
		{short, []string{"--nbd-group", "nobody-has-it"}, 2, "nobody-has-it"},
		{short, []string{"--nbd-mode", "rw"}, 2, "0660"},
		{short, []string{"--nbd-socket", "/" + strings.Repeat("s", 200)}, 2, "bytes"},
	} {
		code, _, complaint := command(t, append([]string{"node", "--data", x.dir}, x.flags...)...)
		if code != x.code || !strings.Contains(complaint, x.says) {
			t.Errorf("%q: code %d, %s, want %s", x.flags, code, complaint, x.says)
		}
		if _, err := os.Lstat(x.dir); err == nil {
			t.Errorf("%q: the data folder was made", x.flags)
		}
	}
}

// TestLongestDataFolder works.
func TestLongestDataFolder(t *testing.T) {
	root, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	dir := filepath.Join(root, strings.Repeat("d", nbd.SocketPathMax-len(root)-len("//nbd.sock")))
	s := serveNode(t, "--data", dir)
	if code, _, complaint := command(t, "volume", "create", "v", "--size", "1M", "--transport", "nbd", "--data", dir); code != 0 {
		t.Error(complaint)
	}
	openQEMU(t, filepath.Join(dir, nbd.SocketName), "v").do(t, "write -P 1 0 4k")
	s.signal(t, syscall.SIGTERM)
	s.ends(t)
}
