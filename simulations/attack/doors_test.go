package attack

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// prey is what an intruder knows of a farm: all but what it would need to have it.
type prey struct {
	insight
	node   peer.ID
	secret [32]byte // of the mesh
	volume string
	image  string
	root   content.CID // of the image
	id     content.VolumeID
	sealed []byte // its record
	absent content.CID
}

// intruder is a stranger, or a member of another farm.
type intruder struct {
	*hostile
	signer trust.Signer
}

func (x intruder) member() bool { return len(x.signer.Chain) > 0 }

// methods are the calls that nodes answer, as their code names them.
func methods(t *testing.T) (out []string) {
	t.Helper()
	known := map[string]string{}
	var value func(e ast.Expr) string
	value = func(e ast.Expr) string {
		switch e := e.(type) {
		case *ast.BasicLit:
			s, _ := strconv.Unquote(e.Value) // of no string it is ""
			return s
		case *ast.Ident:
			return known[e.Name]
		case *ast.BinaryExpr:
			return value(e.X) + value(e.Y)
		}
		return ""
	}
	for range 2 { // one may be made of another
		err := filepath.WalkDir(filepath.Join("..", "..", "node"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if spec, ok := n.(*ast.ValueSpec); ok {
					for i := range min(len(spec.Names), len(spec.Values)) {
						if text := value(spec.Values[i]); text != "" {
							known[spec.Names[i].Name] = text
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range known {
		if strings.HasSuffix(name, "Method") {
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

// call is what a method is tried with: a body that names the prey, and one that names what
// is not there. members are let in, of any farm, for it says nothing of a farm's own.
type call struct {
	here, absent func(prey) []byte
	members      bool
}

func text(s func(prey) string) func(prey) []byte {
	return func(p prey) []byte { return []byte(s(p)) }
}

func calls() map[string]call {
	volume := call{here: text(func(p prey) string { return p.volume }), absent: text(func(prey) string { return "absent" })}
	asJSON := func(name func(prey) string) func(prey) []byte {
		return func(p prey) []byte {
			b, _ := json.Marshal(map[string]string{"name": name(p)}) // it always can be
			return b
		}
	}
	named := call{here: asJSON(func(p prey) string { return p.volume }), absent: asJSON(func(prey) string { return "absent" })}
	empty := func(prey) []byte { return []byte{0xa0} }
	open, closed := call{here: empty, absent: empty, members: true}, call{here: empty, absent: empty}
	return map[string]call{
		"volume/taken": volume, "volume/reads": volume, "volume/snapshot": named, "volume/attach": named,
		"resolve": {
			here:   func(p prey) []byte { return resolveBody(content.KindVolume, p.volume) },
			absent: func(prey) []byte { return resolveBody(content.KindVolume, "absent") },
		},
		"commit": {here: func(p prey) []byte { return commitOf(p.sealed) }, absent: func(prey) []byte { return commitOf([]byte("none")) }},
		"redeem": closed, "twin": closed,
		"oci/who": closed, "oci/have": closed, "oci/read": closed, "oci/tag": closed, "oci/publish": closed,
		"image/warm": {here: asCBOR(func(p prey) any { return map[string]any{"name": p.image} }), absent: asCBOR(func(prey) any { return map[string]any{"name": "absent"} })},
		"match":      {here: asCBOR(pattern(func(p prey) string { return p.image })), absent: asCBOR(pattern(func(prey) string { return "absent" })), members: true},
		"ping":       open, "trust": open, "revoked": open, "secrets": open, "renew": open, "roll": open,
	}
}

func asCBOR(of func(prey) any) func(prey) []byte {
	return func(p prey) []byte {
		b, _ := content.NewCodec().Marshal(of(p)) // it always can be
		return b
	}
}

func pattern(name func(prey) string) func(prey) any {
	return func(p prey) any { return []map[string]string{{"kind": "image", "glob": name(p)}} }
}

func commitOf(sealed []byte) []byte {
	b, _ := content.NewCodec().Marshal(commitBody{Sealed: sealed}) // it always can be
	return b
}

// said is an answer as far as it must not tell one thing from another.
func said(p prey, b []byte, err error) string {
	out := fmt.Sprintf("%q, %v", b, err)
	for _, name := range []string{p.volume, p.image, p.root.String(), p.root.Short(), "absent", p.absent.String(), p.absent.Short()} {
		out = strings.ReplaceAll(out, name, "NAME")
	}
	return out
}

// tryCalls has an intruder try all that members call each other for.
func (x intruder) tryCalls(t *testing.T, p prey) {
	t.Helper()
	cases := calls()
	for _, method := range methods(t) {
		c, ok := cases[method]
		if !ok {
			t.Errorf("nothing is known of who may call %q: add a case", method)
			continue
		}
		ask := func(body []byte) ([]byte, error) {
			ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
			defer cancel()
			return x.exchange.Call(ctx, p.node, method, body)
		}
		b, err := ask(c.here(p))
		other, otherErr := ask(c.absent(p))
		switch {
		case x.member() && c.members:
			if strings.Contains(string(b), p.volume) || strings.Contains(string(b), p.image) {
				t.Errorf("%s tells a member of another farm %q", method, b)
			}
		case err == nil || len(b) > 0:
			t.Errorf("%s: %v is let in: %q", method, x.signer.Chain.Identity(), b)
		case method != "commit" && said(p, b, err) != said(p, other, otherErr):
			t.Errorf("%s: %v is told %s, and of what is not there %s", method, x.signer.Chain.Identity(), said(p, b, err), said(p, other, otherErr))
		case !x.member() && method != "redeem" && method != "resolve" && !errors.Is(err, content.ErrNotFound):
			t.Errorf("%s: a stranger hears %v", method, err)
		}
	}
}

// tryFrames has it send each frame of the protocol, about what is here and what is not:
// the answers are the same. A type that has no case is new.
func (x intruder) tryFrames(t *testing.T, p prey) {
	t.Helper()
	journal := func(make func(wire.Claim) wire.Message) func(context.Context, bool) string {
		return func(ctx context.Context, here bool) string {
			claim := wire.Claim{Epoch: 1}
			if here {
				claim.Volume = p.id
			}
			finish, err := x.exchange.Ask(ctx, p.node, make(claim))
			if err != nil {
				return err.Error()
			}
			held, b, err := finish()
			if err == nil {
				t.Errorf("a journal lets %v in: %v, %q", x.signer.Chain.Identity(), held, b)
			}
			return fmt.Sprint(err)
		}
	}
	root := func(here bool) content.CID {
		if here {
			return p.root
		}
		return p.absent
	}
	answers := func(context.Context, bool) string { return "an asker does not send it" } // which ends the stream, see p2p/exchange
	cases := map[wire.Type]func(ctx context.Context, here bool) string{
		wire.TypeHello: answers, wire.TypeData: answers, wire.TypeAbsent: answers, wire.TypeQueued: answers, wire.TypeProgress: answers, wire.TypeRefer: answers,
		wire.TypeUnknown: answers, wire.TypeBitmap: answers, wire.TypeAnswer: answers, wire.TypeError: answers, wire.TypeHeld: answers,
		wire.TypeCancel: answers, wire.TypeAck: answers, wire.TypeCall: func(context.Context, bool) string { x.tryCalls(t, p); return "" },
		wire.TypeWant: func(ctx context.Context, here bool) string {
			got, unknown := 0, 0
			err := x.exchange.Want(ctx, p.node, exchange.Request{Root: root(here), Indexes: []uint64{0, 1}, Priority: exchange.PriorityPrefetch, Fetch: true}, func(r exchange.Reply) {
				switch r.(type) {
				case *exchange.Data:
					got++
				case exchange.Unknown:
					unknown++
				}
			})
			if got > 0 || unknown != 1 {
				t.Errorf("%v has %d chunks, %d unknown", x.signer.Chain.Identity(), got, unknown)
			}
			return fmt.Sprint(err)
		},
		wire.TypeSubscribe: func(ctx context.Context, here bool) string {
			for b, err := range x.exchange.Bitmaps(ctx, p.node, root(here), 1<<20) {
				if err == nil {
					t.Errorf("%v is shown %d chunks", x.signer.Chain.Identity(), b.Len())
				}
				return fmt.Sprint(err)
			}
			return ""
		},
		wire.TypeIntroduce: func(ctx context.Context, here bool) string {
			if err := x.exchange.Introduce(ctx, p.node, p.sealed); err == nil {
				t.Errorf("%v introduces what it may not read", x.signer.Chain.Identity())
			}
			return ""
		},
		wire.TypePromise: journal(func(c wire.Claim) wire.Message { return wire.Promise{Claim: c, Name: "safe"} }),
		wire.TypeExtend:  journal(func(c wire.Claim) wire.Message { return wire.Extend{Claim: c, Bytes: []byte("x")} }),
		wire.TypeRead:    journal(func(c wire.Claim) wire.Message { return wire.Read{Claim: c, Length: 1} }),
		wire.TypeCut:     journal(func(c wire.Claim) wire.Message { return wire.Cut{Claim: c} }),
		wire.TypeDrop:    journal(func(c wire.Claim) wire.Message { return wire.Drop{Claim: c} }),
		wire.TypeStatus:  journal(func(c wire.Claim) wire.Message { return wire.Status{Claim: c} }),
	}
	for kind := wire.TypeHello; ; kind++ {
		var head [wire.HeaderSize]byte
		copy(head[:], wire.Header{Type: kind}.Append(nil))
		if _, err := wire.ParseHeader(head); err != nil && strings.Contains(err.Error(), "unknown type") {
			break // the last one was before
		}
		try, ok := cases[kind]
		if !ok {
			t.Errorf("nothing is known of who may send a frame of type %d: add a case", kind)
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
		here, absent := try(ctx, true), try(ctx, false)
		cancel()
		if said(p, nil, errors.New(here)) != said(p, nil, errors.New(absent)) {
			t.Errorf("frame %d: %v is told %q, and of what is not there %q", kind, x.signer.Chain.Identity(), here, absent)
		}
	}
}

// tryProtocols opens each protocol that the node says it speaks. One that has no case is
// new.
func (x intruder) tryProtocols(t *testing.T, p prey) {
	t.Helper()
	harmless := func(protocol.ID) {}
	cases := map[string]func(protocol.ID){
		"/grange/": func(protocol.ID) {}, // the exchange: tryFrames
		"/kad/1.0.0": func(protocol.ID) {
			for _, scope := range []content.Scope{content.Public(), content.Mesh(), content.Farm("alpha")} {
				key := swarm.KeyFor(scope, p.root, p.secret)
				if found := x.providersOf(t, p, key[:]); found > 0 {
					t.Errorf("the DHT tells %v who has the root, as one of scope %s", x.signer.Chain.Identity(), scope)
				}
			}
		},
		"/libp2p/circuit/relay/0.2.0/hop": func(id protocol.ID) {
			if b := x.say(t, p.node, id, []byte{2, 8, 0}); !x.member() && strings.Contains(string(b), "/p2p/") { // RESERVE
				t.Errorf("a stranger has a place at the relay: %q", b)
			}
		},
		"/libp2p/circuit/relay/0.2.0/stop": harmless, // for a relay's word on a circuit
		"/libp2p/dcutr":                    harmless, // addresses, of those who are connected
		"/libp2p/autonat/":                 harmless, // says whether the asker is reached
		"/ipfs/id/":                        harmless, // what a host is
	}
	known, err := x.Peerstore().GetProtocols(p.node)
	if err != nil || len(known) == 0 {
		t.Fatalf("the node says that it speaks %v, %v", known, err)
	}
	for _, id := range known {
		found := false
		for _, name := range slices.Backward(slices.Sorted(maps.Keys(cases))) { // the longest of those that begin alike first
			suffix := strings.HasPrefix(name, "/kad") && strings.HasSuffix(string(id), name)
			if found = suffix || !strings.Contains(string(id), "/kad/") && strings.HasPrefix(string(id), name); found {
				cases[name](id)
				break
			}
		}
		if !found {
			t.Errorf("nothing is known of who may speak %s: add a case", id)
		}
	}
}

// say opens a stream, says something, and returns what comes.
func (x intruder) say(t *testing.T, to peer.ID, id protocol.ID, what []byte) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tryTimeout)
	defer cancel()
	s, err := x.NewStream(ctx, to, id)
	if err != nil {
		return nil
	}
	defer s.Reset()
	_ = s.SetDeadline(time.Now().Add(tryTimeout))
	if _, err := s.Write(what); err != nil {
		return nil
	}
	b := make([]byte, 16<<10)
	n, _ := s.Read(b) // nothing is what is hoped for
	return b[:n]
}

// providersOf asks the node's DHT who has announced a key, and returns how many it names.
func (x intruder) providersOf(t *testing.T, p prey, key []byte) int {
	t.Helper()
	hash := append([]byte{0x12, 32}, key...)
	b := x.say(t, p.node, protocol.ID(p.dhtProtocol()), dhtMessage(dhtGetProviders, hash, nil, nil))
	_, n := binary.Uvarint(b) // the length
	found := 0
	for b = b[max(0, n):]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		v, m := binary.Uvarint(b[max(0, n):])
		if n <= 0 || m <= 0 {
			break
		}
		if b = b[n+m:]; tag&7 == 2 {
			b = b[min(v, uint64(len(b))):]
		}
		if tag>>3 == 9 {
			found++
		}
	}
	return found
}

// TestEveryDoorIsShut: all that a node speaks, calls and takes, tried by strangers and by a
// member of another farm who knows the names, roots and records of a farm's own image and
// volume, and the mesh's secret: nothing, in the words of absence.
func TestEveryDoorIsShut(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "alpha", "beta")
	d := newDisk(t, l.Dir, imageSize, 60)
	run(t, nodes[0], "image", "import", "vault", d.path, "--scope", "farm/alpha")
	run(t, nodes[0], "volume", "create", "safe", "--from", "image:vault")
	d.read(t, nodes[1], "copy", "vault") // so that it is announced, and travels
	_, c := steal(t, nodes[2])
	p := prey{insight: look(t, nodes[0]), node: infoOf(t, nodes[0]).ID, secret: c.Secrets.Announce, volume: "safe", image: "vault", absent: content.Sum([]byte("absent"))}
	p.know(t, nodes[0], d)
	at := outside(t, l)
	for _, signer := range append(strangers(soak.Of(4, 64)), p.insight.node(t, "beta")) {
		x := intruder{p.enter(t, at, signer, conduct{}), signer}
		x.visit(t, nodes[0])
		x.tryFrames(t, p)
		x.tryProtocols(t, p)
	}
	if s := statusOf(t, nodes[0]); !s.Ready {
		t.Error("the node is not ready any more")
	}
}

// know fills in what is known of the farm's own.
func (p *prey) know(t *testing.T, n *lab.Node, d disk) {
	t.Helper()
	root, err := p.treasureOf(t, n, p.image, d).head.Root.Encode(content.NewCodec())
	if err == nil {
		p.root = root.CID()
		p.sealed, err = os.ReadFile(recordFile(filepath.Join(n.Data, "origin"), content.KindVolume, p.volume))
	}
	if err != nil {
		t.Fatal(err)
	}
	e, err := trust.NewVerifier(p.mesh).Open(p.sealed, time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.DecodeVolume(content.NewCodec(), e.Body)
	if err != nil {
		t.Fatal(err)
	}
	p.id = body.ID
}
