package web

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/mem"
)

// How much there is: what a large mesh has.
const (
	names   = 10_000
	volumes = 1_000
	members = 500
	farm    = "lyon"
)

// hostile is what somebody calls things who would have a page run it.
const hostile = `<img src=x onerror="window.caught=1"><script>window.caught=2</script>`

// world is a real node behind its API, of a mesh with much in it.
type world struct {
	t       *testing.T
	dir     string
	store   *mem.Bucket
	address string
	node    *node.Node
	stop    func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "web-") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: filepath.Join(dir, "node"), store: mem.New(t, mem.Config{}), address: freeAddress(t)}
	t.Cleanup(func() {
		if w.stop != nil {
			w.stop()
		}
		os.RemoveAll(dir)
	})
	w.start() // it founds the mesh
	w.stop()
	w.fill()
	w.start()
	return w
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the node until stop is called.
func (w *world) start() {
	w.t.Helper()
	n, err := node.New(w.t.Context(), node.Config{
		Dir: w.dir, Name: "node0", Farm: farm, Origins: []string{"s3://images/prod"}, Quota: 1 << 30, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Version: "test",
		OriginLimits: budget.Limits{Requests: 2000, Bytes: 50 << 20},
		OpenOrigin: func(context.Context, string) (bucket.Bucket, *bucket.Metrics, error) {
			counted := bucket.WithMetrics(w.store)
			return counted, counted, nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	server := api.New(api.Config{Node: n, Dir: w.dir, Address: w.address, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err := server.Listen(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx, server.Run) }()
	w.node, w.stop = n, func() {
		w.stop = nil
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) token() string {
	b, err := os.ReadFile(filepath.Join(w.dir, api.TokenName))
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// fill puts the records of many names and volumes at the origin, and many members on the node's roll, all signed as they
// are by those who may.
func (w *world) fill() {
	w.t.Helper()
	codec, now := content.NewCodec(), time.Now()
	signer, known, err := (&lab.Node{Data: w.dir}).Credentials()
	if err != nil {
		w.t.Fatal(err)
	}
	mesh, err := trust.LoadKey(filepath.Join(w.dir, "mesh.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	type enrolled struct {
		Chain trust.Chain `cbor:"chain"`
		Met   []struct{}  `cbor:"met"`
		Name  string      `cbor:"name"`
		Seen  int64       `cbor:"seen"`
	}
	roll := struct {
		Magic  string     `cbor:"magic"`
		All    []enrolled `cbor:"all"`
		Caught int64      `cbor:"caught"`
	}{Magic: "grange-roll/1"}
	var keys []trust.PublicKey
	for i := range members {
		key := trust.NewPrivateKey().Public()
		chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key, Role: trust.RoleNode, Farm: fmt.Sprintf("farm-%02d", i%20)}, now)
		if err != nil {
			w.t.Fatal(err)
		}
		keys = append(keys, key)
		roll.All = append(roll.All, enrolled{chain, nil, fmt.Sprintf("host-%03d", i), now.Add(-time.Duration(i) * time.Hour).UnixMilli()})
	}
	b, err := codec.Marshal(roll)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, "roll"), b, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	records, err := catalog.New(catalog.Config{Bucket: w.store, Verifier: trust.NewVerifier(known.Mesh), Signer: signer})
	if err != nil {
		w.t.Fatal(err)
	}
	commit := func(kind content.Kind, name, farm string, body []byte, err error) {
		if err == nil {
			_, err = records.Commit(w.t.Context(), catalog.Change{Kind: kind, Name: name, Farm: farm, Body: body})
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	for i := range names {
		image := w.image(i)
		b, err := image.Encode(codec)
		commit(content.KindImage, fmt.Sprintf("image-%05d", i), image.Head.Scope.Farm(), b, err)
	}
	for i := range volumes {
		v := catalog.Volume{Size: int64(1+i%40) << 30, Epoch: 1, Incarnation: 1, Holder: keys[i%members], State: catalog.Attached, Policy: []string{"local", "farm:1", "origin"}[i%3]}
		v.ID[0], v.ID[1] = byte(i), byte(i>>8)
		if i%3 == 1 {
			v.Holders = keys[:1]
		}
		if i%7 == 0 {
			v.State = catalog.Released
		}
		b, err := v.Encode(codec)
		commit(content.KindVolume, fmt.Sprintf("volume-%04d", i), farm, b, err)
	}
}

// image is the body of one record.
func (w *world) image(i int) catalog.Image {
	id, err := pack.ParseID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		w.t.Fatal(err)
	}
	at := func(n byte, offset uint32) pack.Extent {
		return pack.Extent{CID: content.Sum([]byte{n, byte(i), byte(i >> 8)}), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	root := content.Root{Size: int64(1+(i*7919)%997) << 30, ChunkSize: content.ChunkSizeDefault, Map: content.Sum([]byte{1, byte(i), byte(i >> 8)})}
	out := catalog.Image{Head: pack.Head{Root: root, Scope: content.Mesh(), Node: at(1, 1<<24), Page: at(2, 1<<24+1<<12), Manifest: at(3, 1<<25)}, Source: fmt.Sprintf("/srv/images/%05d.qcow2", i)}
	if i == 3 {
		out.Source = hostile
	}
	return out
}

// noise is a file of so many bytes that nothing makes smaller.
func noise(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	random, part := rand.NewChaCha8([32]byte{1}), make([]byte, 1<<20)
	for ; size > 0; size -= int64(len(part)) {
		_, _ = random.Read(part) // it never fails
		if _, err := f.Write(part); err != nil {
			t.Fatal(err)
		}
	}
}

// request asks a node's API at an address, with its token.
func request(t *testing.T, method, url, token, body string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
