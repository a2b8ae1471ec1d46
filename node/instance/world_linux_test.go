package instance

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

func TestMain(m *testing.M) {
	if port := os.Getenv("WORKLOAD"); port != "" {
		if err := workload(port); err != nil {
			fmt.Println("workload:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// workload keeps a log in the folder that it works in: GET /add/TEXT adds to it, and answers once that is on disk; GET / reads
// it, and GET /exit ends the process. Told to end it does, after it has said so in the log.
func workload(port string) error {
	f, err := os.OpenFile("log.txt", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	add := func(text string) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := f.WriteString(text + "\n")
		return errors.Join(err, f.Sync())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /add/{text}", func(w http.ResponseWriter, r *http.Request) {
		if err := add(r.PathValue("text")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("GET /exit", func(http.ResponseWriter, *http.Request) { os.Exit(7) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "log.txt") })
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	fmt.Println("listening on", port)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	server := http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return add("stopped")
}

// origin has the records and the trees of a mesh in memory. It takes no record over another than the one that is there.
type origin struct {
	mu      sync.Mutex
	down    error // why nothing answers
	full    error // why nothing is stored
	losing  int   // so many records from now on, the reply to one that was written does not come back
	version uint64
	records map[string]catalog.Record
	trees   map[content.CID][][]byte // chunks
	read    int64                    // bytes of files that were stored and not kept
	images  *images.Images           // that have targets; nil in most tests

	targetRead atomic.Int64 // bytes of packs that were read there
}

func newOrigin() *origin {
	return &origin{records: map[string]catalog.Record{}, trees: map[content.CID][][]byte{}}
}

func (o *origin) Instance(_ context.Context, name string) (catalog.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, ok := o.records[name]
	switch {
	case o.down != nil:
		return catalog.Record{}, o.down
	case !ok || r.Tombstone:
		return r, content.ErrNotFound
	}
	return r, nil
}

func (o *origin) Instances(context.Context) (out []catalog.Record) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.records {
		if !r.Tombstone {
			out = append(out, r)
		}
	}
	return out
}

func (o *origin) Commit(_ context.Context, name string, base *catalog.Record, farm string, body []byte) (catalog.Record, error) {
	return o.put(catalog.Record{Envelope: trust.Envelope{Kind: content.KindInstance, Name: name, Farm: farm, Body: body}}, base)
}

func (o *origin) Delete(_ context.Context, base catalog.Record) error {
	_, err := o.put(catalog.Record{Envelope: trust.Envelope{Kind: base.Kind, Name: base.Name, Tombstone: true}}, &base)
	return err
}

func (o *origin) put(r catalog.Record, base *catalog.Record) (catalog.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down != nil {
		return r, o.down
	}
	there, ok := o.records[r.Name]
	if ok != (base != nil) || ok && base.ETag != there.ETag {
		return r, fmt.Errorf("%w: another record is there", content.ErrConflict)
	}
	o.version++
	r.ETag, r.SignedAt = strconv.FormatUint(o.version, 10), time.Now()
	o.records[r.Name] = r
	if o.losing--; o.losing == 0 {
		return r, fmt.Errorf("%w: the reply is lost", content.ErrUnavailable)
	}
	return r, nil
}

func (o *origin) setDown(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = err
}

func (o *origin) failing() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.down
}

func (o *origin) TreeRoot(context.Context, string) (fetch.Root, error) {
	return fetch.Root{}, content.ErrNotFound
}

func (o *origin) Harvest(ctx context.Context, _ images.Updater, root fetch.Root, dir string) (said []string, err error) {
	if err := o.failing(); err != nil {
		return nil, err
	}
	o.mu.Lock()
	chunks := o.trees[root.Head.Root.Map]
	o.mu.Unlock()
	t, err := tree.Open(ctx, content.NewCodec(), root.Head.Root, func(_ context.Context, index uint64, off int, p []byte) error {
		copy(p, chunks[index][off:])
		return nil
	})
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = convert.Harvest(ctx, t, dir, func(text string) { said = append(said, text) })
	}
	return said, err
}

func (o *origin) Lend(fetch.Root) (*images.Lent, error) { return nil, errors.ErrUnsupported }

func (o *origin) Stow(ctx context.Context, _ images.Updater, what images.ToStow) (catalog.Image, images.Stowed, error) {
	o.mu.Lock()
	err := cmp.Or(o.down, o.full)
	o.mu.Unlock()
	if err != nil {
		return catalog.Image{}, nil, err
	}
	chunks, now, read, err := planted(ctx, what.Dir, what.Was, o.chunk)
	if err != nil {
		return catalog.Image{}, nil, err
	}
	root := content.Root{Kind: content.RootTree, ChunkSize: tree.ChunkSize, Count: uint64(len(chunks)), Map: content.Sum(bytes.Join(chunks, nil))}
	for _, c := range chunks {
		root.Size += int64(len(c))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trees[root.Map], o.read = chunks, o.read+read
	id, err := pack.ParseID(what.Scope.String() + "/2026112022-000102030405060708090a0b0c0d0e0f")
	at := pack.Location{Pack: id, Offset: 1 << 16, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}
	behind := at
	behind.Offset += at.Length
	head := pack.Head{Root: root, Scope: what.Scope, Node: pack.Extent{CID: root.Map, Location: at}, Page: pack.Extent{CID: root.Map, Location: behind}, Manifest: pack.Extent{CID: root.Map, Location: at}}
	return catalog.Image{Head: head, Lineage: what.Lineage}, now, err
}

// chunk finds one that is stored.
func (o *origin) chunk(id content.CID) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for chunks := range maps.Values(o.trees) {
		for _, c := range chunks {
			if content.Sum(c) == id {
				return c
			}
		}
	}
	return nil
}

func (o *origin) Recall(ctx context.Context, dir string) (images.Stowed, error) {
	_, now, _, err := planted(ctx, dir, nil, nil)
	return now, err
}

// Target implements Library by a store in a folder.
func (o *origin) Target(ctx context.Context, url, dir string) (*images.Target, error) {
	if err := o.failing(); err != nil {
		return nil, err
	}
	return o.images.Target(ctx, url, dir)
}

// planted is a folder as a tree.
func planted(ctx context.Context, dir string, was images.Stowed, find func(content.CID) []byte) (chunks [][]byte, now images.Stowed, read int64, err error) {
	now = images.Stowed{}
	w, err := tree.NewWriter(tree.Config{
		Codec: content.NewCodec(),
		Add: func(_ context.Context, _ uint64, raw []byte) error {
			chunks, read = append(chunks, bytes.Clone(raw)), read+int64(len(raw))
			return nil
		},
		Known: func(key content.CID) (tree.Segment, bool) { s, ok := was[key]; return s, ok },
		Keep: func(_ context.Context, _ uint64, p tree.Piece) error {
			chunks = append(chunks, find(p.CID))
			return nil
		},
		Note: func(key content.CID, s tree.Segment) { now[key] = s },
	})
	if err != nil {
		return nil, nil, 0, err
	}
	files, err := convert.OpenFiles(ctx, convert.Options{Path: dir, Format: convert.Dir, Warn: func(string) {}, Note: func(string) {}})
	if err == nil {
		_, err = files.Plant(ctx, w)
		err = errors.Join(err, files.Close())
	}
	return chunks, now, read, err
}

// world is a hub without its node.
type world struct {
	*Hub
	t    *testing.T
	self byte
	stop func()
}

// newWorld starts a hub in a folder, with the origin that it shares with others.
func newWorld(t *testing.T, o *origin, dir string, self byte, change ...func(*Config)) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := Config{
		Dir: dir, First: 23_000 + 100*int(self), Last: 23_099 + 100*int(self), Provisions: 2, Hydrations: 2, Self: trust.PublicKey{self}, Farm: "lyon",
		Who: func(k trust.PublicKey) string { return fmt.Sprint("node ", k[0]) }, Registry: o, Library: o, Operations: operations.New(log, time.Now), Codec: content.NewCodec(), Now: time.Now, Log: log,
	}
	for _, c := range change {
		c(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Hub: h, t: t, self: self}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, cfg.Operations.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.stop()
		for _, i := range h.snapshot() {
			if e, _ := i.now(); e.Process != nil {
				_ = unix.Kill(e.Process.PID, unix.SIGKILL)
			}
		}
	})
	<-h.started
	return w
}

// again starts the hub anew, with what its node has on disk.
func (w *world) again(o *origin) *world {
	w.t.Helper()
	w.stop()
	return newWorld(w.t, o, w.cfg.Dir, w.self)
}

// counting is an instance of the workload.
func counting() terms.Request {
	program, _ := os.Executable()
	return terms.Request{Spec: terms.Spec{Command: []string{program, "-test.run=^$"}, Env: []string{"WORKLOAD={port}"}, Ready: "http:/"}}
}

// do asks for something, and returns the instance once that has ended, and how.
func (w *world) do(name string, e state.Event, req ...terms.Request) (terms.View, error) {
	w.t.Helper()
	req = append(req, terms.Request{})
	v, op, err := w.Do(w.t.Context(), name, e, req[0])
	if err != nil || op.ID == "" {
		return v, err
	}
	if op.State == operations.Running && v.Operation != op.ID {
		w.t.Errorf("%s %s: operation %s is at it, not %q", e, name, op.ID, v.Operation)
	}
	if op, err = w.cfg.Operations.Wait(w.t.Context(), op.ID); err != nil {
		return v, err
	}
	if op.State != operations.Done {
		err = errors.New(op.Error)
	}
	if v, failed := w.Get(w.t.Context(), name); failed == nil {
		return v, err
	}
	return terms.View{Name: name, State: state.Unprovisioned}, err
}

// must is do that has to succeed, and to end in a state.
func (w *world) must(name string, e state.Event, want state.State, req ...terms.Request) terms.View {
	w.t.Helper()
	v, err := w.do(name, e, req...)
	if err != nil || v.State != want {
		w.t.Fatalf("%s %s: %s (%s), %v; want %s", e, name, v.State, v.Detail, err, want)
	}
	return v
}

// until waits for a state.
func (w *world) until(name string, want state.State) terms.View {
	w.t.Helper()
	for tick := time.Tick(20 * time.Millisecond); ; {
		v, err := w.Get(w.t.Context(), name)
		if err == nil && v.State == want {
			return v
		}
		select {
		case <-tick:
		case <-w.t.Context().Done():
			w.t.Fatalf("%s is %s (%s), and never %s", name, v.State, v.Detail, want)
		}
	}
}

// page asks the workload of an instance.
func (w *world) page(v terms.View, path string) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/%s", v.Port, path), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s of %s: %s, %v", path, v.Name, resp.Status, err)
	}
	return strings.ReplaceAll(string(b), "\n", " ")
}

// record is what the origin says of an instance.
func (o *origin) record(t *testing.T, name string) catalog.Instance {
	t.Helper()
	r, err := o.Instance(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.DecodeInstance(content.NewCodec(), r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// folders are what is left on disk.
func (w *world) folders() []string {
	all, _ := filepath.Glob(filepath.Join(w.cfg.Dir, "*"))
	return all
}
