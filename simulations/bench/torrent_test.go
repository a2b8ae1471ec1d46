package bench

import (
	"context"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// pieceSize is what baselines took: 1 MiB.
	pieceSize = 1 << 20
	peerPort  = 6881
	rpcPort   = 6800
	trackPort = 6969
)

// torrent describes a file, for clients that ask a tracker of ours.
func torrent(b *testing.B, file, tracker string) []byte {
	b.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	var pieces []byte
	for at := 0; at < len(content); at += pieceSize {
		sum := sha1.Sum(content[at:min(len(content), at+pieceSize)])
		pieces = append(pieces, sum[:]...)
	}
	name := filepath.Base(file)
	return fmt.Appendf(nil, "d8:announce%d:%s4:infod6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%see",
		len(tracker), tracker, len(content), len(name), name, pieceSize, len(pieces), pieces)
}

// track tells all clients of each other.
func track(b *testing.B, on *netns.Host, hosts []*netns.Host) (url string, stop func() error) {
	b.Helper()
	var peers []byte
	for _, h := range hosts {
		ip := h.Addr().As4()
		peers = append(append(peers, ip[:]...), peerPort>>8, peerPort&0xff)
	}
	address := fmt.Sprintf("%s:%d", on.Addr(), trackPort)
	l, err := on.Listen(b.Context(), "tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "d8:intervali2e5:peers%d:%se", len(peers), peers)
	})}
	go server.Serve(l)
	return "http://" + address + "/announce", server.Close
}

// client is an aria2 on a host, with a folder of its own.
type client struct {
	host *netns.Host
	dir  string
	cmd  *exec.Cmd
}

func startClient(b *testing.B, l *lab.Lab, host *netns.Host, torrent string, extra ...string) *client {
	b.Helper()
	c := &client{host: host, dir: filepath.Join(l.Dir, "aria2-"+host.Addr().String())}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		b.Fatal(err)
	}
	done := filepath.Join(c.dir, "done.sh")
	if err := os.WriteFile(done, []byte("#!/bin/sh\ntouch "+c.done()+"\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	c.cmd = host.Command(context.WithoutCancel(b.Context()), "aria2c", append([]string{
		"--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--disable-ipv6=true", "--file-allocation=none",
		"--bt-tracker-interval=2", "--console-log-level=warn", "--summary-interval=0", "--seed-ratio=0.0", "--bt-max-peers=55", "--quiet=true",
		fmt.Sprintf("--listen-port=%d", peerPort), "--bt-external-ip=" + host.Addr().String(), "--on-bt-download-complete=" + done,
		"--enable-rpc=true", "--rpc-listen-all=true", fmt.Sprintf("--rpc-listen-port=%d", rpcPort), "--dir=" + c.dir,
	}, append(extra, torrent)...)...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c *client) done() string { return filepath.Join(c.dir, "done") }

// stop ends the client, and returns the CPU seconds that it took.
func (c *client) stop() float64 {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	return (c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()).Seconds()
}

// uploaded is how many bytes of pieces the client has sent.
func (c *client) uploaded(b *testing.B) (n int64) {
	b.Helper()
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.host.Dial(ctx, network, address)
	}}}
	ask := strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"aria2.tellActive","params":[["uploadLength"]]}`)
	r, err := web.Post(fmt.Sprintf("http://%s:%d/jsonrpc", c.host.Addr(), rpcPort), "application/json", ask)
	if err != nil {
		return 0 // it is not up yet
	}
	defer r.Body.Close()
	var answer struct {
		Result []struct {
			UploadLength int64 `json:"uploadLength,string"`
		}
	}
	if text, err := io.ReadAll(r.Body); err != nil || json.Unmarshal(text, &answer) != nil {
		b.Fatalf("aria2 answers %q: %v", text, err)
	}
	for _, t := range answer.Result {
		n += t.UploadLength
	}
	return n
}

// tick is how often something is looked at that nobody tells.
const tick = 20 * time.Millisecond

// await waits until something holds.
func await(b *testing.B, what string, holds func() bool) {
	b.Helper()
	late, again := time.NewTimer(5*time.Minute), time.NewTicker(tick)
	defer late.Stop()
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-late.C:
			b.Fatalf("not within 5 minutes: %s", what)
		}
	}
}

// swarmed is crowded with BitTorrent, from the first byte on that the seed sends.
func swarmed(b *testing.B, l *lab.Lab, disk string, rate int) (r rush) {
	b.Helper()
	var hosts []*netns.Host
	for i := range crowd + 1 {
		h, err := l.Net.Host(b.Context(), map[bool]string{true: "origin", false: "cold"}[i == 0])
		if err != nil {
			b.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	url, stop := track(b, hosts[0], hosts)
	defer stop()
	file := filepath.Join(l.Dir, "f.torrent")
	if err := os.WriteFile(file, torrent(b, disk, url), 0o644); err != nil {
		b.Fatal(err)
	}
	if rate > 0 {
		if err := lab.Narrow(b.Context(), hosts[0], rate); err != nil {
			b.Fatal(err)
		}
	}
	seed := startClient(b, l, hosts[0], file, "--dir="+filepath.Dir(disk), "--check-integrity=true")
	defer seed.stop()
	await(b, "the seed has checked its file", func() bool { _, err := os.Stat(seed.done()); return err == nil })
	var clients []*client
	for _, h := range hosts[1:] {
		c := startClient(b, l, h, file)
		clients = append(clients, c)
	}
	await(b, "the seed sends", func() bool { return seed.uploaded(b) > 0 })
	start := time.Now()
	await(b, "all have it", func() bool {
		for _, c := range clients {
			if _, err := os.Stat(c.done()); err != nil {
				return false
			}
		}
		return true
	})
	r.seconds, r.origin = time.Since(start).Seconds(), float64(seed.uploaded(b))/crowdSize
	for _, c := range clients {
		r.cpu += c.stop()
	}
	return r
}
