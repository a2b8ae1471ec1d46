package swarm

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p-kad-dht/records"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// providersMax bounds the announcements that are kept for others, at some 250
	// bytes each: a mesh of 1,000 farms with 200 roots each has 400,000, each kept by
	// 20 members.
	providersMax = 100_000
	// providersCut is how much of the heaviest member's goes at once when there is no
	// room, so that looking for it costs little.
	providersCut = providersMax / 100
)

// providers is where the DHT keeps announcements: in memory, so many of one member
// and so many of all. It forgets an announcement on the DHT's word, which is given
// when it has expired. The DHT takes one only from the member that it is about; that
// this is a member is the gate's concern. Safe for concurrent use.
//
// The DHT's keys are /providers/KEY/MEMBER, its values a time as a varint.
type providers struct {
	perMember, total int

	mu     sync.Mutex // guards what follows
	count  int
	keys   map[string][]provider
	member map[string]map[string]struct{} // the keys of each
}

// provider is one announcement.
type provider struct {
	member string
	at     int64
}

func newProviders(perMember, total int) *providers {
	return &providers{perMember: perMember, total: total, keys: map[string][]provider{}, member: map[string]map[string]struct{}{}}
}

// split returns the parts of a key of the DHT.
func split(k ds.Key) (key, member string, ok bool) {
	rest, ok := strings.CutPrefix(k.String(), records.ProvidersKeyPrefix)
	key, member, cut := strings.Cut(rest, "/")
	return key, member, ok && cut && key != "" && member != ""
}

// Put implements ds.Datastore. A member's announcement over its limit is
// content.ErrNoSpace.
func (p *providers) Put(_ context.Context, k ds.Key, value []byte) error {
	key, member, ok := split(k)
	at, n := binary.Varint(value)
	if !ok || n != len(value) {
		return fmt.Errorf("announcement %s: %w", k, content.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.keys[key] {
		if p.keys[key][i].member == member {
			p.keys[key][i].at = at
			return nil
		}
	}
	if n := len(p.member[member]); n >= p.perMember {
		return fmt.Errorf("announcement: %w: the member has %d here", content.ErrNoSpace, n)
	}
	if p.count >= p.total {
		p.makeRoom()
	}
	if p.member[member] == nil {
		p.member[member] = map[string]struct{}{}
	}
	p.member[member][key] = struct{}{}
	p.keys[key] = append(p.keys[key], provider{member, at})
	p.count++
	return nil
}

// makeRoom drops some of what the heaviest member announced. The caller holds mu.
func (p *providers) makeRoom() {
	heaviest := ""
	for m := range p.member {
		if len(p.member[m]) > len(p.member[heaviest]) {
			heaviest = m
		}
	}
	n := max(1, min(providersCut, len(p.member[heaviest])/2))
	for key := range p.member[heaviest] {
		if n--; n < 0 {
			return
		}
		p.remove(key, heaviest)
	}
}

// remove forgets an announcement. The caller holds mu.
func (p *providers) remove(key, member string) {
	for i, x := range p.keys[key] {
		if x.member != member {
			continue
		}
		p.keys[key] = append(p.keys[key][:i], p.keys[key][i+1:]...)
		p.count--
		break
	}
	if len(p.keys[key]) == 0 {
		delete(p.keys, key)
	}
	if delete(p.member[member], key); len(p.member[member]) == 0 {
		delete(p.member, member)
	}
}

// Delete implements ds.Datastore.
func (p *providers) Delete(_ context.Context, k ds.Key) error {
	key, member, _ := split(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(key, member)
	return nil
}

// Get implements ds.Datastore.
func (p *providers) Get(_ context.Context, k ds.Key) ([]byte, error) {
	key, member, _ := split(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.keys[key] {
		if x.member == member {
			return binary.AppendVarint(nil, x.at), nil
		}
	}
	return nil, ds.ErrNotFound
}

// Has implements ds.Datastore.
func (p *providers) Has(ctx context.Context, k ds.Key) (bool, error) {
	_, err := p.Get(ctx, k)
	return err == nil, nil
}

// GetSize implements ds.Datastore.
func (p *providers) GetSize(ctx context.Context, k ds.Key) (int, error) {
	b, err := p.Get(ctx, k)
	return len(b), err
}

// Query implements ds.Datastore for what the DHT asks: the announcements of one key,
// or all of them.
func (p *providers) Query(_ context.Context, q query.Query) (query.Results, error) {
	want := strings.Trim(strings.TrimPrefix(q.Prefix, strings.TrimSuffix(records.ProvidersKeyPrefix, "/")), "/")
	var out []query.Entry
	p.mu.Lock()
	defer p.mu.Unlock()
	add := func(key string) {
		for _, x := range p.keys[key] {
			value := binary.AppendVarint(nil, x.at)
			out = append(out, query.Entry{Key: records.ProvidersKeyPrefix + key + "/" + x.member, Value: value, Size: len(value)})
		}
	}
	if want != "" {
		add(want)
		return query.ResultsWithEntries(q, out), nil
	}
	for key := range p.keys {
		add(key)
	}
	return query.ResultsWithEntries(q, out), nil
}

// Batch implements ds.Batching.
func (p *providers) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(p), nil }

// Sync implements ds.Datastore.
func (p *providers) Sync(context.Context, ds.Key) error { return nil }

// Close implements ds.Datastore.
func (p *providers) Close() error { return nil }
