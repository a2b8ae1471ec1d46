package attack

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// apiAddress is where the first node of a lab answers HTTP.
	apiAddress = "10.77.1.2:8080"
	// tryTimeout bounds one try of a thief.
	tryTimeout = 4 * time.Second
)

// treasure is what an image consists of, by name.
type treasure struct {
	head   pack.Head
	chunks []content.CID
	what   map[content.CID]string
}

// treasureOf names all parts of a private image as one can who has its record and
// knows what is in it.
func (i insight) treasureOf(t *testing.T, founder *lab.Node, name string, d disk) treasure {
	t.Helper()
	sealed, err := os.ReadFile(recordFile(filepath.Join(founder.Data, "origin"), content.KindImage, name))
	if err != nil {
		t.Fatal(err)
	}
	out := treasure{head: i.imageHead(t, sealed), what: map[content.CID]string{}}
	for at := 0; at < len(d.bytes); at += content.ChunkSizeDefault {
		id := content.Sum(d.bytes[at : at+content.ChunkSizeDefault])
		out.what[id] = fmt.Sprintf("chunk %d", len(out.chunks))
		out.chunks = append(out.chunks, id)
	}
	out.what[out.head.Node.CID], out.what[out.head.Page.CID] = "the map", "the locator page"
	return out
}

// thief is a member of another farm that introduces roots of its own and asks for what
// they name.
type thief struct {
	*hostile
	signer trust.Signer
	victim peer.ID
	loot   treasure
}

// takes fails for each private object that the victim sends.
func (x thief) takes(t *testing.T, how string, root content.CID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tryTimeout)
	defer cancel()
	for level := range 3 {
		for _, fetch := range []bool{false, true} {
			w := wire.Want{Root: root, Level: level, Indexes: []uint64{0, 1, 2, 3}, Fetch: fetch, Priority: wire.PriorityGuest}
			if level > 0 {
				w.Indexes = w.Indexes[:1]
			}
			for _, b := range x.wants(ctx, x.signer, x.victim, w) {
				if what := x.loot.what[content.Sum(b)]; what != "" {
					t.Errorf("%s: level %d brought %s", how, level, what)
				}
			}
		}
	}
	shown, stop := context.WithTimeout(ctx, tryTimeout/8)
	defer stop()
	if n := x.isShown(shown, x.victim, root); n > 0 {
		t.Errorf("%s: the victim shows %d chunks", how, n)
	}
}

// introduces sends a record, and takes what its root names.
func (x thief) introduces(t *testing.T, how string, h pack.Head, sealed []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tryTimeout)
	defer cancel()
	err := x.exchange.Introduce(ctx, x.victim, sealed)
	t.Logf("%s: introduced: %v", how, err)
	x.takes(t, how, rootOf(t, h))
}

// scopes are those that a member of beta may try to open a root in.
func scopes() []content.Scope {
	return []content.Scope{content.Farm("beta"), content.Mesh(), content.Public()}
}

// ownMap is a server that has nothing but a map of its own making.
type ownMap struct {
	staller
	node content.Node
	page []byte
}

// Want implements exchange.Server.
func (m *ownMap) Want(ctx context.Context, _ exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level != 1 {
		_ = w.Absent(req.Indexes...) // or the asker is gone
		return
	}
	_ = w.Data(ctx, 0, exchange.Object{Body: m.node.Encode().Bytes(), Page: m.page})
}

// TestPrivateImageStaysInItsFarm: a member of beta that knows the record of an image of
// alpha's, and all names in it, gets nothing of it, whatever roots it introduces or
// publishes; nor does anybody over HTTP.
func TestPrivateImageStaysInItsFarm(t *testing.T) {
	l := newLab(t)
	victim, err := l.Start(t.Context(), "alpha", "", "--api", apiAddress)
	if err != nil {
		t.Fatal(err)
	}
	i := look(t, victim)
	d := newDisk(t, l.Dir, imageSize, 50)
	run(t, victim, "image", "import", "secret", d.path, "--scope", "farm/alpha")
	d.read(t, victim, "v", "secret") // so that all of it is in the cache
	loot := i.treasureOf(t, victim, "secret", d)
	at := outside(t, l)
	enter := func(t *testing.T, role trust.Role, c conduct) thief {
		signer := i.member(t, role, "beta")
		x := thief{i.enter(t, at, signer, c), signer, infoOf(t, victim).ID, loot}
		x.visit(t, victim)
		return x
	}
	t.Run("its own record", func(t *testing.T) {
		x := enter(t, trust.RoleNode, conduct{answerer: claims{farm: "alpha"}})
		x.takes(t, "the true root", rootOf(t, loot.head))
	})
	t.Run("a volume with its map", func(t *testing.T) {
		x := enter(t, trust.RoleNode, conduct{})
		for k, scope := range scopes() {
			h := claim(scope, imageSize+content.ChunkSizeDefault, loot.head.Node.CID, loot.head.Page.CID)
			x.introduces(t, "its map in "+scope.String(), h, volumeRecord(t, x.signer, fmt.Sprintf("a%d", k), h))
			h = claim(scope, imageSize, loot.chunks[2*k], loot.chunks[2*k+1])
			x.introduces(t, "two chunks in "+scope.String(), h, volumeRecord(t, x.signer, fmt.Sprintf("b%d", k), h))
		}
	})
	t.Run("a publisher's image with its map", func(t *testing.T) {
		x := enter(t, trust.RolePublisher, conduct{})
		for k, scope := range scopes() {
			h := claim(scope, imageSize, loot.chunks[10+2*k], loot.head.Page.CID)
			x.introduces(t, "a chunk and its page in "+scope.String(), h, imageRecord(t, x.signer, fmt.Sprintf("c%d", k), h))
		}
		h := claim(content.Mesh(), imageSize, loot.chunks[20], loot.chunks[21])
		x.commits(t, victim, imageRecord(t, x.signer, "bait0", h))
		x.takes(t, "two chunks in a published image", rootOf(t, h))
	})
	t.Run("a map of its own", func(t *testing.T) {
		for k, scope := range scopes() {
			m := mapOf(scope, loot.chunks[30+4*k:30+4*k+4])
			r := &ring{}
			x := enter(t, trust.RolePublisher, conduct{server: m, dht: r.serve, answerer: claims{farm: "beta"}})
			r.add(x.hostile)
			h := claim(scope, imageSize, m.node.Encode().CID(), content.Sum(m.page))
			x.introduces(t, "its chunks under another map in "+scope.String(), h, imageRecord(t, x.signer, fmt.Sprintf("d%d", k), h))
			if scope != content.Mesh() {
				continue
			}
			x.commits(t, victim, imageRecord(t, x.signer, "bait1", h))
			ctx, cancel := context.WithTimeout(t.Context(), 2*tryTimeout)
			_, err := victim.Run(ctx, "image", "warm", "bait1")
			cancel()
			t.Logf("the victim warms the bait: %v", err)
			x.takes(t, "its chunks under a map that the victim looked up", rootOf(t, h))
		}
	})
	t.Run("over HTTP", func(t *testing.T) {
		client := tokenless(at)
		wantStatus, want := ask(t, client, "https://"+apiAddress+"/ipfs/%s?format=raw", content.Sum([]byte("never was")).String())
		for id, what := range loot.what {
			if status, got := ask(t, client, "https://"+apiAddress+"/ipfs/%s?format=raw", id.String()); status != wantStatus || !bytes.Equal(got, want) {
				t.Errorf("%s: %d %.200q, and for what is not there: %d %.200q", what, status, got, wantStatus, want)
			}
		}
		if wantStatus != http.StatusNotFound {
			t.Errorf("what is not there: status %d", wantStatus)
		}
	})
}

// commits has a node of the lab write a record, as one that can write to no origin
// would; it may refuse.
func (x thief) commits(t *testing.T, by *lab.Node, sealed []byte) {
	t.Helper()
	body, err := content.NewCodec().Marshal(commitBody{Sealed: sealed})
	if err != nil {
		t.Fatal(err)
	}
	_, err = x.exchange.Call(t.Context(), infoOf(t, by).ID, "commit", body)
	t.Logf("committed: %v", err)
}

// tokenless is a client on a host, without a token.
func tokenless(at *netns.Host) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: at.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 8}}
}

// ask gets a URL with a name in it, and returns the answer with the name taken out.
func ask(t *testing.T, client *http.Client, url, name string) (status int, body []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	status, body, err := fetch(ctx, client, fmt.Sprintf(url, name))
	if err != nil {
		t.Fatal(err)
	}
	return status, bytes.ReplaceAll(body, []byte(name), []byte("NAME"))
}

func fetch(ctx context.Context, client *http.Client, url string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// TestFalsePageSpoilsNoImage: who introduces a root with a false locator page before the
// true record is met does not keep anybody from its image.
func TestFalsePageSpoilsNoImage(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha", "beta")
	i := look(t, nodes[0])
	d := newDisk(t, l.Dir, imageSize, 60)
	run(t, nodes[0], "image", "import", "shared", d.path)
	head := i.treasureOf(t, nodes[0], "shared", d).head
	at := outside(t, l)
	for k, role := range []trust.Role{trust.RoleNode, trust.RolePublisher} {
		t.Run(string(role), func(t *testing.T) {
			victim, signer := nodes[1+k], i.member(t, role, "beta")
			h := i.enter(t, at, signer, conduct{})
			h.visit(t, victim)
			for _, scope := range []content.Scope{content.Public(), content.Mesh(), content.Farm("beta")} {
				false := claim(scope, imageSize, head.Node.CID, content.Sum([]byte("false")))
				sealed := volumeRecord(t, signer, "first-"+string(role), false)
				if role == trust.RolePublisher {
					sealed = imageRecord(t, signer, "first", false)
				}
				t.Logf("introduced in %s: %v", scope, h.exchange.Introduce(t.Context(), infoOf(t, victim).ID, sealed))
			}
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			if out, err := victim.Run(ctx, "image", "warm", "shared"); err != nil {
				t.Errorf("warm: %v: %s", err, out)
			}
			d.read(t, victim, "v-"+string(role), "shared")
		})
	}
}
