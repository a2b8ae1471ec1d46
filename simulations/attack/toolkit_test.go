package attack

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/mem"
)

// This file is all that the attackers use of the product's insides.

// steal reads what a member has in its data folder.
func steal(t *testing.T, n *lab.Node) (trust.Signer, lab.Credentials) {
	t.Helper()
	s, c, err := n.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// insight is what is known of a mesh: its public key, and the means to make the
// certificates that its farms would get with tokens.
type insight struct {
	mesh  trust.PublicKey
	admin trust.Signer
}

func look(t *testing.T, founder *lab.Node) insight {
	t.Helper()
	admin, c := steal(t, founder)
	return insight{c.Mesh, admin}
}

// stranger is a key without a certificate.
func stranger() trust.Signer { return trust.Signer{Key: trust.NewPrivateKey()} }

// member is a key with the certificate of a member that has gone bad.
func (i insight) member(t *testing.T, role trust.Role, farm string) trust.Signer {
	t.Helper()
	s := stranger()
	chain, err := i.admin.Issue(trust.Identity{Key: s.Key.Public(), Role: role, Farm: farm}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.Chain = chain
	return s
}

// node is a member of role node.
func (i insight) node(t *testing.T, farm string) trust.Signer {
	return i.member(t, trust.RoleNode, farm)
}

func libp2pKey(t *testing.T, k trust.PrivateKey) crypto.PrivKey {
	t.Helper()
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(k.Seed()))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i insight) exchangeProtocol() protocol.ID { return protocol.ID(wire.ProtocolID(i.mesh)) }
func (i insight) dhtProtocol() protocol.ID {
	return protocol.ID("/grange/" + i.mesh.String() + "/kad/1.0.0")
}

// speak lets a hostile host speak the exchange protocol.
func (i insight) speak(t *testing.T, h *hostile, signer trust.Signer, c conduct) {
	t.Helper()
	var err error
	h.exchange, err = exchange.New(exchange.Config{
		Host: h.Host, Ledger: identity.New(trust.NewVerifier(i.mesh), time.Now), Chain: signer.Chain, Server: c.server, Answerer: c.answerer,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hello is the first frame of a stream.
func hello(signer trust.Signer, lane wire.Lane) []byte {
	chain, _ := content.NewCodec().Marshal(signer.Chain) // a chain can always be encoded
	if len(signer.Chain) == 0 {
		chain = nil
	}
	return wire.Append(nil, 0, wire.Hello{Lane: lane, Chain: chain})
}

// wants asks for objects on a stream of its own, as a program that believes in no limit
// of a frame does, and returns all bodies and pages that come.
func (h *hostile) wants(ctx context.Context, signer trust.Signer, from peer.ID, w wire.Want) (got [][]byte) {
	s, err := h.NewStream(ctx, from, protocol.ID(wire.ProtocolID(h.mesh)))
	if err != nil {
		return nil
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if _, err := s.Write(wire.Append(hello(signer, wire.LaneUrgent), 1, w)); err != nil {
		return nil
	}
	taken := 0
	for left := len(w.Indexes); left > 0; {
		var head [wire.HeaderSize]byte
		if _, err := io.ReadFull(s, head[:]); err != nil {
			return got
		}
		f, err := wire.ParseHeader(head)
		if err != nil {
			return got
		}
		b := make([]byte, f.Length)
		if _, err := io.ReadFull(s, b); err != nil {
			return got
		}
		if f.Type == wire.TypeData {
			left--
			d, err := wire.DecodeData(f, [wire.DataSize]byte(b))
			if err != nil {
				return got
			}
			b = b[wire.DataSize:]
			got = append(got, b[:d.Stored], b[d.Stored:])
			if taken += d.Size(); d.Ack {
				_, _ = s.Write(wire.Append(nil, 0, wire.Ack{Bytes: uint32(taken)})) // if it is lost, so is the rest
				taken = 0
			}
			continue
		}
		m, err := wire.Decode(f, b)
		if err != nil {
			return got
		}
		switch m := m.(type) {
		case wire.Absent:
			left -= len(m.Indexes)
		case wire.Unknown, wire.Error, wire.Refer:
			return got
		}
	}
	return got
}

// isShown returns how many chunks of a root a member says that it holds.
func (h *hostile) isShown(ctx context.Context, of peer.ID, root content.CID) (n uint64) {
	for b, err := range h.exchange.Bitmaps(ctx, of, root, 1<<32) {
		if err != nil {
			break
		}
		n = max(n, b.Len())
	}
	return n
}

// resolveBody and commitBody are what those calls carry.
func resolveBody(kind content.Kind, name string) []byte {
	b, _ := content.NewCodec().Marshal(struct { // it can always be encoded
		Kind content.Kind `cbor:"kind"`
		Name string       `cbor:"name"`
	}{kind, name})
	return b
}

type commitBody struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
}

// echoer says of each record that it is asked to commit that it has, and then that it
// saw it at the origin. It may have no certificate.
type echoer struct {
	signer trust.Signer

	mu     sync.Mutex // guards sealed
	sealed []byte     // the last one
}

// Call implements exchange.Answerer.
func (e *echoer) Call(_ context.Context, _ exchange.Peer, method string, body []byte) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case method == "farm":
		return []byte("beta"), nil
	case method == "commit":
		var c commitBody
		if err := content.NewCodec().Unmarshal(body, &c); err != nil {
			return nil, err
		}
		e.sealed = c.Sealed
	case method != "resolve" || e.sealed == nil:
		return nil, fmt.Errorf("call %q: %w", method, content.ErrNotFound)
	}
	var outer struct {
		_         struct{} `cbor:",toarray"`
		Payload   []byte
		Signature []byte
		Chain     trust.Chain
	}
	var said struct {
		Kind    content.Kind `cbor:"kind"`
		Name    string       `cbor:"name"`
		Version uint64       `cbor:"version"`
	}
	codec := content.NewCodec()
	if err := codec.Unmarshal(e.sealed, &outer); err != nil {
		return nil, err
	}
	if err := codec.Unmarshal(outer.Payload, &said); err != nil {
		return nil, err
	}
	statement, err := e.signer.State(trust.Statement{Kind: said.Kind, Name: said.Name, Version: said.Version, SeenAt: time.Now()})
	if err != nil {
		return nil, err
	}
	return codec.Marshal(struct {
		Sealed    []byte `cbor:"record"`
		Statement []byte `cbor:"statement"`
		ETag      string `cbor:"etag"`
	}{e.sealed, statement, "echo"})
}

// redeemBody is what a newcomer shows of a token.
func redeemBody(t *testing.T, text string, subject trust.PublicKey) []byte {
	t.Helper()
	token, err := trust.ParseToken(text, time.Time{}) // a thief believes in no expiry
	if err != nil {
		t.Fatal(err)
	}
	b, err := content.NewCodec().Marshal(struct {
		Invite  trust.Invite    `cbor:"invite"`
		Subject trust.PublicKey `cbor:"subject"`
	}{token.Invite, subject})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// redeemed reads the certificate in the answer.
func redeemed(b []byte) (trust.Chain, error) {
	var reply struct {
		Chain trust.Chain `cbor:"chain"`
	}
	err := content.NewCodec().Unmarshal(b, &reply)
	return reply.Chain, err
}

// tokenBytes is what a token's text encodes.
func tokenBytes(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "grange1"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// secretsIn are all keys that a member shares with others, whatever they are called.
func secretsIn(t *testing.T, n *lab.Node) map[string][]byte {
	t.Helper()
	var file struct {
		Secrets map[string]any `cbor:"secrets"`
	}
	b, err := os.ReadFile(filepath.Join(n.Data, "membership"))
	if err == nil {
		err = content.NewCodec().Unmarshal(b, &file)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for name, v := range file.Secrets {
		if key, ok := v.([]byte); ok && len(key) == 32 && !bytes.Equal(key, make([]byte, 32)) {
			out[name] = key
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s keeps no secrets where they were", n.Name)
	}
	return out
}

// recordFile is where a folder bucket keeps the record of a name.
func recordFile(bucket string, kind content.Kind, name string) string {
	return filepath.Join(bucket, "records", string(kind.Space()), name)
}

// imageHead reads a sealed record of an image as one who has got hold of it does.
func (i insight) imageHead(t *testing.T, sealed []byte) pack.Head {
	t.Helper()
	e, err := trust.NewVerifier(i.mesh).Open(sealed, time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.DecodeImage(content.NewCodec(), e.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body.Head
}

// aPack is the name of a pack of a scope that nobody has seen.
func aPack(scope content.Scope) pack.ID {
	return pack.ID(scope.String() + "/" + time.Now().UTC().Format("2006010215") + fmt.Sprintf("-%032x", randomBytes(16)))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// claim is a head whose map and page are any two objects, which lie nowhere.
func claim(scope content.Scope, size int64, node, page content.CID) pack.Head {
	at := func(offset uint32, id content.CID) pack.Extent {
		return pack.Extent{CID: id, Location: pack.Location{Pack: "", Offset: offset, Length: 4096, Raw: 4096}}
	}
	h := pack.Head{Root: content.Root{Size: size, ChunkSize: content.ChunkSizeDefault, Map: node}, Scope: scope, Node: at(16, node), Page: at(16+4096, page), Manifest: at(16+8192, content.Sum([]byte("none")))}
	p := aPack(scope)
	h.Node.Pack, h.Page.Pack, h.Manifest.Pack = p, p, p
	return h
}

// mapOf is a map and page that name some chunks, said to lie in a pack of that scope.
func mapOf(scope content.Scope, chunks []content.CID) *ownMap {
	page := append([]byte("grpage\x00\x01"), 1, 0, 0, byte(len(chunks)), 0, 1, 0, 0)
	id := aPack(scope)
	page = append(append(page, byte(len(id))), id...)
	for i := range chunks {
		page = append(page, 0, 0, byte(pack.CodecRaw), 0)
		for _, n := range []uint32{uint32(16 + i*content.ChunkSizeDefault), content.ChunkSizeDefault, content.ChunkSizeDefault} {
			page = binary.BigEndian.AppendUint32(page, n)
		}
	}
	return &ownMap{node: content.Node{Level: 1, Entries: chunks}, page: page}
}

// rootOf names the root of a head.
func rootOf(t *testing.T, h pack.Head) content.CID {
	t.Helper()
	root, err := h.Root.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return root.CID()
}

// volumeRecord seals a volume's record with that head.
func volumeRecord(t *testing.T, s trust.Signer, name string, h pack.Head) []byte {
	t.Helper()
	body, err := catalog.Volume{ID: content.VolumeID(randomBytes(16)), Size: h.Root.Size, Folded: catalog.Folded{Head: &h}, Policy: catalog.PolicyLocal, Epoch: 1, Holder: s.Key.Public(), State: catalog.Released}.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return seal(t, s, content.KindVolume, name, s.Chain.Identity().Farm, body)
}

// imageRecord seals an image's record with that head.
func imageRecord(t *testing.T, s trust.Signer, name string, h pack.Head) []byte {
	t.Helper()
	body, err := catalog.Image{Head: h, Source: "forged", Chunks: 1, Stored: 1}.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return seal(t, s, content.KindImage, name, "", body)
}

func seal(t *testing.T, s trust.Signer, kind content.Kind, name, farm string, body []byte) []byte {
	t.Helper()
	b, err := s.Seal(trust.Envelope{Kind: kind, Name: name, Version: 1, SignedAt: time.Now(), Commit: trust.NewCommit(), Farm: farm, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// frame is one object of a forged pack: bytes, and what the directory says they are.
type frame struct {
	claimed content.CID
	bytes   []byte
}

// forgePack lays out a pack whose directory says of its frames what it likes, and the
// index object that repeats it.
func forgePack(t *testing.T, id pack.ID, frames []frame) (object, indexed []byte) {
	t.Helper()
	w := pack.NewWriter(id, nil)
	for _, f := range frames {
		w.Add(pack.RoleChunk, f.claimed, len(f.bytes), pack.CodecRaw, f.bytes)
	}
	s, err := w.Seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	in := mem.New(t, mem.Config{})
	if err := index.Store(t.Context(), in, id, []index.Pack{{ID: id, Entries: s.Directory, Signature: s.Signature}}); err != nil {
		t.Fatal(err)
	}
	indexed, _, err = bucket.ReadAll(t.Context(), in, in.Keys(string(content.KeyIndexes))[0], pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	return s.Bytes, indexed
}

// exchangeChunk puts other bytes in the place of a pack's first chunk, and has the
// directory say so: the pack is sound, and is not the one that it was.
func exchangeChunk(t *testing.T, b []byte) {
	t.Helper()
	footer := b[len(b)-256:]
	n, at := int(binary.BigEndian.Uint32(footer[12:])), int(binary.BigEndian.Uint32(footer[16:]))
	directory := b[at : at+48*n]
	for e := directory; len(e) > 0; e = e[48:] {
		if pack.Role(e[46]) != pack.RoleChunk || pack.Codec(e[44]) != pack.CodecRaw {
			continue
		}
		offset, length := binary.BigEndian.Uint32(e[32:]), binary.BigEndian.Uint32(e[36:])
		chunk := b[offset : offset+length]
		rand.Read(chunk)
		sum := content.Sum(chunk)
		copy(e, sum[:])
		sum = content.Sum(directory)
		copy(footer[32:], sum[:])
		binary.BigEndian.PutUint32(footer[248:], crc32.Checksum(footer[:248], crc32.MakeTable(crc32.Castagnoli)))
		return
	}
	t.Fatal("the pack has no chunk that is stored as it is")
}

// gossip joins a farm's gossip with its key and nothing else.
func gossip(t *testing.T, h *hostile, farm string, key [32]byte, neighbours ...*lab.Node) *memberlist.Memberlist {
	t.Helper()
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.SecretKey = h.ID().String(), farm, key[:]
	c.BindAddr, c.BindPort, c.AdvertisePort = h.at.Addr().String(), 7946, 7946
	c.Logger = quiet()
	meta := append([]byte("gf\x01"), 0, 0, 0, 0)
	for _, a := range h.Addrs() {
		meta = append(append(meta, byte(len(a.String()))), a.String()...)
	}
	c.Delegate = says{meta}
	transport := &gossipTransport{at: h.at}
	err := h.at.Inside(func() (err error) {
		transport.NetTransport, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Transport = transport
	list, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { list.Shutdown() })
	for _, n := range neighbours {
		if _, err := list.Join([]string{fmt.Sprintf("%s:7946", n.Host.Addr())}); err != nil {
			t.Logf("the gossiper is not let in by %s: %v", n.Name, err)
		}
	}
	return list
}

// says is what the gossiper says of itself.
type says struct{ meta []byte }

func (s says) NodeMeta(int) []byte           { return s.meta }
func (says) NotifyMsg([]byte)                {}
func (says) GetBroadcasts(int, int) [][]byte { return nil }
func (says) LocalState(bool) []byte          { return nil }
func (says) MergeRemoteState([]byte, bool)   {}

var _ exchange.Server = (*staller)(nil)

// Introduce implements exchange.Server.
func (s *staller) Introduce(context.Context, exchange.Peer, []byte) error {
	s.introduced.Add(1)
	return nil
}
