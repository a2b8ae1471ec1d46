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
// The DHT's keys are /providers/KEY/MEMBER, its values a time as a varint. It puts,
// queries and deletes, and nothing else.
type providers struct {
	*ds.NullDatastore
	perMember, total int

	mu    sync.Mutex // guards what follows
	count int
	of    map[string]map[string][]byte // by member and key
}

func newProviders(perMember, total int) *providers {
	return &providers{NullDatastore: ds.NewNullDatastore(), perMember: perMember, total: total, of: map[string]map[string][]byte{}}
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
	if _, n := binary.Varint(value); !ok || n != len(value) {
		return fmt.Errorf("announcement %s: %w", k, content.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, had := p.of[member][key]; !had {
		if n := len(p.of[member]); n >= p.perMember {
			return fmt.Errorf("announcement: %w: the member has %d here", content.ErrNoSpace, n)
		}
		if p.count >= p.total {
			p.makeRoom()
		}
		p.count++
	}
	if p.of[member] == nil {
		p.of[member] = map[string][]byte{}
	}
	p.of[member][key] = value
	return nil
}

// makeRoom drops some of what the heaviest member announced. The caller holds mu.
func (p *providers) makeRoom() {
	heaviest := ""
	for m := range p.of {
		if len(p.of[m]) > len(p.of[heaviest]) {
			heaviest = m
		}
	}
	n := max(1, min(providersCut, len(p.of[heaviest])/2))
	for key := range p.of[heaviest] {
		if n--; n < 0 {
			return
		}
		p.remove(key, heaviest)
	}
}

// remove forgets an announcement. The caller holds mu.
func (p *providers) remove(key, member string) {
	if _, had := p.of[member][key]; had {
		p.count--
	}
	if delete(p.of[member], key); len(p.of[member]) == 0 {
		delete(p.of, member)
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

// Query implements ds.Datastore for what the DHT asks: the announcements of one key,
// or all of them.
func (p *providers) Query(_ context.Context, q query.Query) (query.Results, error) {
	want := strings.Trim(strings.TrimPrefix(q.Prefix, strings.TrimSuffix(records.ProvidersKeyPrefix, "/")), "/")
	var out []query.Entry
	add := func(member, key string, value []byte) {
		out = append(out, query.Entry{Key: records.ProvidersKeyPrefix + key + "/" + member, Value: value, Size: len(value)})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for member, keys := range p.of {
		if want == "" {
			for key, value := range keys {
				add(member, key, value)
			}
		} else if value, ok := keys[want]; ok {
			add(member, want, value)
		}
	}
	return query.ResultsWithEntries(q, out), nil
}
