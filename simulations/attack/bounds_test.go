package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
	"github.com/grangemesh/grange/simulations/soak"
)

const (
	// filesMax is how many files the leanest systems give a process.
	filesMax = 1024
	// silentMax is more strangers than a node serves at once, and streamsEach what one
	// of them may open.
	silentMax, streamsEach = 130, 8
	// addressesMax is how many addresses an attacker dials from: of one address, few
	// connections are taken.
	addressesMax = 20
	// hangingAtOnce are opened at a time, each given up after hangingTime.
	hangingAtOnce = 256
	hangingTime   = 2 * time.Second
)

// TestHugeRootsCostNothing: roots of the largest size and the smallest chunks, which
// nobody holds anything of, take no memory and do not keep a node from stopping.
func TestHugeRootsCostNothing(t *testing.T) {
	l := newLab(t)
	victim := start(t, l, "alpha")[0]
	i := look(t, victim)
	d := newDisk(t, l.Dir, imageSize, 70)
	run(t, victim, "image", "import", "image", d.path)
	at := outside(t, l)
	fromNow(t, victim)
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	var wg sync.WaitGroup
	var sent, refused atomic.Int64
	for _, role := range []trust.Role{trust.RoleNode, trust.RolePublisher} {
		signer := i.member(t, role, "beta")
		h := i.enter(t, at, signer, conduct{})
		h.visit(t, victim)
		id := infoOf(t, victim).ID
		for range 2 {
			wg.Go(func() {
				for range soak.Of(250, 25_000) {
					c := claim(content.Mesh(), content.SizeMax, content.CID(randomBytes(content.CIDSize)), content.CID(randomBytes(content.CIDSize)))
					c.Root.ChunkSize = content.ChunkSizeMin
					sealed := volumeRecord(t, signer, fmt.Sprintf("v%x", randomBytes(8)), c)
					if role == trust.RolePublisher {
						sealed = imageRecord(t, signer, fmt.Sprintf("i%x", randomBytes(8)), c)
					}
					sent.Add(1)
					if h.exchange.Introduce(ctx, id, sealed) != nil {
						refused.Add(1)
					}
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d roots were introduced, %d of them refused", sent.Load(), refused.Load())
	d.read(t, victim, "v", "image")
	bounded(t, victim, residentMax)
	if heap, err := victim.Metric(t.Context(), "go_memstats_heap_sys_bytes"); err != nil || heap > residentMax {
		t.Errorf("the heap takes %.0f MiB of addresses: %v", heap/(1<<20), err)
	}
	if s := statusOf(t, victim); s.Origin.State != "ok" || !s.Ready {
		t.Errorf("status: ready %v, origin %s", s.Ready, s.Origin.State)
	}
	if err := victim.Stop(); err != nil {
		t.Error(err)
	}
}

// aliases gives a host more addresses.
func aliases(t *testing.T, at *netns.Host, n int) (out []net.IP) {
	t.Helper()
	b := at.Addr().As4()
	for k := range n {
		b[3] = byte(200 + k)
		ip := net.IPv4(b[0], b[1], b[2], b[3])
		if said, err := at.Command(t.Context(), "/usr/sbin/ip", "addr", "add", ip.String()+"/24", "dev", "eth0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		out = append(out, ip)
	}
	return out
}

// silence lets strangers open all streams that they may to a node, and say on each no
// more than that.
func (i insight) silence(t *testing.T, l *lab.Lab, victim *lab.Node, say func(trust.Signer) []byte) (streams int64) {
	t.Helper()
	at := outside(t, l)
	from := aliases(t, at, addressesMax)
	info := infoOf(t, victim)
	var open atomic.Int64
	var wg sync.WaitGroup
	for k := range silentMax {
		signer := stranger()
		h := i.enter(t, at, signer, conduct{mute: true, from: from[k%len(from)]})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			if err := h.Connect(ctx, info); err != nil {
				return // it is let in no more
			}
			for range streamsEach {
				s, err := h.NewStream(network.WithAllowLimitedConn(ctx, "attack"), info.ID, i.exchangeProtocol())
				if err != nil {
					return
				}
				if _, err := s.Write(say(signer)); err == nil {
					open.Add(1)
				}
				go io.Copy(io.Discard, s) // ends with the host
			}
		})
	}
	wg.Wait()
	return open.Load()
}

// TestSilentStrangersDoNotStopAJoin: strangers that take all places, and are silent or
// idle, don't keep a newcomer from joining.
func TestSilentStrangersDoNotStopAJoin(t *testing.T) {
	for _, c := range []struct {
		what string
		say  func(trust.Signer) []byte
	}{
		{"silent", func(trust.Signer) []byte { return nil }},
		{"idle after hello", func(s trust.Signer) []byte { return hello(s, wire.LaneControl) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			l := newLab(t)
			nodes := start(t, l, "alpha")
			i := look(t, nodes[0])
			t.Logf("%d streams are open", i.silence(t, l, nodes[0], c.say))
			if n, err := l.Start(t.Context(), "beta", ""); err != nil {
				t.Errorf("the newcomer does not join: %v", err)
			} else if s := statusOf(t, n); !s.Ready {
				t.Errorf("the newcomer is not ready: %v", s.Waiting)
			}
		})
	}
}

// lean gives the lab's nodes as few files as the leanest systems do.
func lean(t *testing.T, l *lab.Lab) {
	t.Helper()
	path := filepath.Join(l.Dir, "grange")
	script := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", filesMax, l.Binary)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	l.Binary = path
}

// hangs opens connections to a node's API whose requests never end, until the test
// does, and returns how many stood for a moment.
func hangs(t *testing.T, l *lab.Lab, address string, n int) int64 {
	t.Helper()
	at := outside(t, l)
	from := append(aliases(t, at, addressesMax), nil)
	requests := []string{
		"PUT /api/images/x HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
		"GET /healthz HTTP/1.1\r\nHost: node\r\nContent-Length: 1000\r\n\r\n",
		"GET /api/resolve/x HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n",
	}
	var stood atomic.Int64
	var wg sync.WaitGroup
	gate := make(chan struct{}, hangingAtOnce)
	for k := range n {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			ctx, cancel := context.WithTimeout(t.Context(), hangingTime)
			defer cancel()
			raw, err := dialer{at, from[k%len(from)]}.DialContext(ctx, "tcp", address)
			if err != nil {
				return // it takes no more
			}
			conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
			t.Cleanup(func() { raw.Close() })
			raw.SetDeadline(time.Now().Add(hangingTime))
			_, err = io.WriteString(conn, requests[k%len(requests)])
			raw.SetDeadline(time.Time{})
			if err == nil {
				stood.Add(1)
			}
		})
	}
	wg.Wait()
	return stood.Load()
}

// TestHangingBodies: HTTP requests whose bodies never come leave the API and the disks
// to those who are in earnest.
func TestHangingBodies(t *testing.T) {
	l := newLab(t)
	lean(t, l)
	n, err := l.Start(t.Context(), "alpha", "", "--api", apiAddress)
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, l.Dir, imageSize, 80)
	run(t, n, "image", "import", "image", d.path)
	t.Logf("%d requests hang", hangs(t, l, apiAddress, soak.Of(1200, 3000)))
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	client := tokenless(outside(t, l))
	answers := within(ctx, readTimeout, func(ctx context.Context) bool {
		status, _, err := fetch(ctx, client, "https://"+apiAddress+"/healthz")
		return err == nil && status == http.StatusOK
	})
	if !answers {
		t.Errorf("the API at %s answers nobody", apiAddress)
	}
	var s api.Status
	if err := n.Get(ctx, "/api/status", &s); err != nil || s.Origin.State != "ok" {
		t.Errorf("the API's socket: %v, origin %q", err, s.Origin.State)
	}
	d.read(t, n, "v", "image")
	if err := n.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the node: %v", err)
	}
}

const (
	// looks is how many names strangers look for that nobody has.
	looks = 400
	// looksRate and looksBurst are the names that a node looks for at its store for all of
	// them: so many a second, and so many at once, beside what it does there by itself.
	looksRate, looksBurst = 5, 40
)

// TestTokenlessLooksSpendNothing: names that nobody has, looked for without a token,
// don't take the node's budget at its store, nor do they change what status says.
func TestTokenlessLooksSpendNothing(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	front, err := store.Front(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const address = "10.77.2.2:8080" // the store's LAN came first
	n, err := l.Start(t.Context(), "alpha", front.URL, "--api", address, "--origin-requests", "20/s")
	if err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, l.Dir, 1<<20, 90)
	run(t, n, "image", "import", "image", d.path)
	var requests atomic.Int64
	front.Meddle(func(_ string, w http.ResponseWriter, r *http.Request, store http.Handler) {
		requests.Add(1)
		store.ServeHTTP(w, r)
	})
	client := tokenless(outside(t, l))
	began := time.Now()
	var wg sync.WaitGroup
	gate := make(chan struct{}, 64)
	for k := range looks {
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			_, _, _ = fetch(ctx, client, fmt.Sprintf("https://%s/api/resolve/none-%d", address, k)) // whatever it says
		})
	}
	var unwell atomic.Int64
	looking, done := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		within(looking, readTimeout, func(ctx context.Context) bool {
			if s, err := n.Status(ctx); err == nil && s.Origin.State != "ok" {
				unwell.Add(1)
			}
			return false
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	for range 3 {
		if out, err := n.Run(ctx, "image", "show", "image"); err != nil {
			t.Errorf("the operator's own look: %v: %s", err, out)
		}
		until(t, "the operator is told what is not there", func(ctx context.Context) bool { // a busy machine may not answer the node in time
			_, err := n.Run(ctx, "resolve", "nobodys")
			return err != nil && strings.Contains(err.Error(), "not found")
		})
	}
	wg.Wait()
	done()
	watch.Wait()
	t.Logf("%d looks cost the store %d requests; status was wrong %d times", looks, requests.Load(), unwell.Load())
	if unwell.Load() > 0 {
		t.Errorf("status was wrong about the origin %d times", unwell.Load())
	}
	if requests.Load() > max(looks/3, looksBurst+int64(looksRate*time.Since(began).Seconds())) {
		t.Errorf("%d looks without a token cost the store %d requests", looks, requests.Load())
	}
	front.Meddle(nil)
}

// TestAbsentPrivateAndDeletedLookAlike: a name that nobody has, one that others may not
// see and one that was deleted are one answer, to strangers and to other farms.
func TestAbsentPrivateAndDeletedLookAlike(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "alpha", "", "--api", apiAddress)
	if err != nil {
		t.Fatal(err)
	}
	i := look(t, n)
	d := newDisk(t, l.Dir, 1<<20, 91)
	for _, name := range []string{"private", "erased"} {
		run(t, n, "image", "import", name, d.path, "--scope", "farm/alpha")
	}
	run(t, n, "volume", "create", "disk", "--from", "image:private")
	run(t, n, "image", "rm", "erased")
	at := outside(t, l)
	client := tokenless(at)
	for _, kind := range []string{"", "image:", "volume:", "snapshot:"} {
		url := "https://" + apiAddress + "/api/resolve/" + kind + "%s"
		wantStatus, want := ask(t, client, url, "absent")
		for _, name := range []string{"private", "erased", "disk"} {
			if status, got := ask(t, client, url, name); status != wantStatus || !bytes.Equal(got, want) {
				t.Errorf("HTTP: %s%s: %d %s, and absent: %d %s", kind, name, status, got, wantStatus, want)
			}
		}
	}
	for _, signer := range []trust.Signer{stranger(), i.node(t, "beta")} {
		h := i.enter(t, at, signer, conduct{})
		h.visit(t, n)
		answer := func(kind content.Kind, name string) string {
			b, err := h.exchange.Call(t.Context(), infoOf(t, n).ID, "resolve", resolveBody(kind, name))
			return strings.ReplaceAll(fmt.Sprintf("%d bytes, %v", len(b), err), name, "NAME")
		}
		for _, name := range []string{"private", "erased"} {
			if got, want := answer(content.KindImage, name), answer(content.KindImage, "absent"); got != want {
				t.Errorf("%q: %s: %s, and absent: %s", signer.Chain.Identity().Farm, name, got, want)
			}
		}
		if got, want := answer(content.KindVolume, "disk"), answer(content.KindVolume, "absent"); got != want {
			t.Errorf("%q: disk: %s, and absent: %s", signer.Chain.Identity().Farm, got, want)
		}
	}
}
