package swarm

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// announceValidity is how long an announcement holds; a lost reannounce does no harm.
	announceValidity = 30 * time.Minute
	reannounce       = 10 * time.Minute
	// announceTimeout bounds one announcement.
	announceTimeout = 30 * time.Second
	// announceRetry is how soon a failed announcement is made again, at first; the
	// time doubles up to announceRetryMax.
	announceRetry    = time.Second
	announceRetryMax = time.Minute
	// announceCheck is how often a member looks whether it knows more of the mesh.
	announceCheck = time.Second
	// announceParallel bounds the announcements at a time: each asks a dozen members.
	announceParallel = 4
	// announcersMax is how many members one search yields, and announcedMax how many
	// it looks at: one may be this member, and others none. firstMax of them are those that
	// rank first, and othersMax any.
	announcersMax = 20
	announcedMax  = 3 * announcersMax
	firstMax      = 10
	othersMax     = announcersMax - firstMax
	// namedMax is how many of them one member may name where others are to be heard
	// too: of those who are asked then, some twenty, a third would have to lie.
	namedMax = 10
	// announcementsMax bounds the roots that a member announces.
	announcementsMax = 10_000
	// tableFull is how many members an announcement goes to. Who knew as many
	// when it was made has reached those that searches end at.
	tableFull = 20
)

// announcements says which keys this member announces and when. It has no clock.
type announcements struct {
	mu   sync.Mutex // guards keys and what it points to
	keys map[Key]*announcement
}

type announcement struct {
	due      time.Time
	failures int
	// known is the size of the routing table when it was last made.
	known int
}

// add reports whether the key is new.
func (a *announcements) add(k Key) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keys[k] != nil {
		return false, nil
	}
	if len(a.keys) >= announcementsMax {
		return false, fmt.Errorf("announce: %w: %d roots are announced already", content.ErrNoSpace, len(a.keys))
	}
	a.keys[k] = &announcement{}
	return true, nil
}

func (a *announcements) remove(k Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.keys, k)
}

func (a *announcements) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.keys)
}

// due returns the keys to announce now: those whose time has come, and those that
// were announced when this member knew less than half as many as the known that
// it knows now, for their announcements may lie where nobody searches.
func (a *announcements) due(now time.Time, known int) []Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Key
	for k, x := range a.keys {
		if !now.Before(x.due) || x.failures == 0 && x.known < tableFull && known >= 2*max(x.known, 1) {
			out = append(out, k)
		}
	}
	return out
}

func (a *announcements) done(k Key, now time.Time, known int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.keys[k]
	switch {
	case x == nil: // withdrawn meanwhile
	case ok:
		*x = announcement{due: now.Add(reannounce), known: known}
	default:
		x.due = now.Add(min(announceRetry<<min(x.failures, 10), announceRetryMax))
		x.failures++
	}
}

// Announce tells the mesh that this member holds content of the key, until
// Withdraw. It returns at once; a member that is alone keeps trying.
func (s *Swarm) Announce(k Key) error {
	added, err := s.announced.add(k)
	if added {
		select {
		case s.wake <- struct{}{}:
		default: // it is awake
		}
	}
	return err
}

// Withdraw announces the key no more. A DHT can't take a record back: it is forgotten
// announceValidity after the last announcement. Who finds it meanwhile is told that
// nothing is here, or reaches nobody, and goes on to the next.
func (s *Swarm) Withdraw(k Key) { s.announced.remove(k) }

func (s *Swarm) keepAnnounced(ctx context.Context) {
	tick := time.Tick(announceCheck)
	for {
		select {
		case <-s.wake:
		case <-tick:
		case <-ctx.Done():
			return
		}
		known := s.dht.RoutingTable().Size()
		var group errgroup.Group
		group.SetLimit(announceParallel)
		for _, k := range s.announced.due(time.Now(), known) {
			group.Go(func() error {
				s.announce(ctx, k, known)
				return nil
			})
		}
		group.Wait()
	}
}

func (s *Swarm) announce(ctx context.Context, k Key, known int) {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	err := s.dht.Provide(ctx, k.cid(), true)
	s.announced.done(k, time.Now(), known, err == nil)
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("announcement failed", "err", err) // alone in the mesh
	}
}

// Find yields members that announced the key and have proved that they are members, in
// the order in which they did, until the search or ctx ends: those that rank first, see
// content.Weight, whoever searches, and some others.
func (s *Swarm) Find(ctx context.Context, k Key) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		members := make(chan peer.AddrInfo, announcedMax)
		var search errgroup.Group
		search.Go(func() error {
			defer close(members)
			s.search(ctx, k, members)
			return nil
		})
		defer search.Wait()
		defer cancel()
		first, others := ranks{key: string(k[:])}, 0
		for info := range members {
			if !first.take(info.ID) {
				if others++; others > othersMax {
					continue
				}
			}
			if !yield(info) {
				return
			}
		}
	}
}

// search sends those who announced the key and prove that they are members, until all
// are known. What has filled it may all have been named by one member: then each is
// asked for a few.
func (s *Swarm) search(ctx context.Context, k Key, members chan<- peer.AddrInfo) {
	var proving errgroup.Group
	defer proving.Wait()
	proving.SetLimit(announcedMax + announcersMax)
	found := map[peer.ID]bool{}
	look := func(info peer.AddrInfo) {
		if found[info.ID] || info.ID == s.host.ID() || s.ledger.ShutOut(info.ID) {
			return
		}
		s.host.Peerstore().AddAddrs(info.ID, info.Addrs, announceValidity)
		if len(s.host.Peerstore().Addrs(info.ID)) == 0 {
			return // it may be found again, with addresses
		}
		found[info.ID] = true
		proving.Go(func() error {
			if s.proofs.wait(ctx, info.ID) {
				select {
				case members <- info:
				case <-ctx.Done():
				}
			}
			return nil
		})
	}
	n := 0
	for info := range s.dht.FindProvidersAsync(ctx, k.cid(), announcedMax) {
		look(info)
		n++
	}
	if n < announcedMax {
		return
	}
	named := make(chan peer.AddrInfo)
	proving.Go(func() error {
		defer close(named)
		return s.askEach(ctx, k, named)
	})
	for info := range named {
		look(info)
	}
}

// askEach sends some that each member names where an announcement of the key lies.
func (s *Swarm) askEach(ctx context.Context, k Key, named chan<- peer.AddrInfo) error {
	key := k.cid().Hash()
	members, err := s.dht.GetClosestPeers(ctx, string(key))
	if err != nil {
		return err
	}
	ask, err := pb.NewProtocolMessenger(s.dht.MessageSender())
	if err != nil {
		return err
	}
	var asking errgroup.Group
	for _, id := range members {
		asking.Go(func() error {
			all, _, err := ask.GetProviders(ctx, id, key)
			rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			first := ranks{key: string(k[:])}
			for _, info := range all {
				first.take(info.ID)
			}
			others := 0
			for _, info := range all {
				if !first.has(info.ID) {
					if others++; others > namedMax {
						continue
					}
				}
				select {
				case named <- *info:
				case <-ctx.Done():
				}
			}
			return err
		})
	}
	return asking.Wait()
}

// ranks is the announcers of a key that rank first of those that were named, by their
// weights for it. All who search find them, so farms agree on who leads; what else a search
// yields differs, so what one has spreads.
type ranks struct {
	key   string
	first []peer.ID
}

// take reports whether a member ranks among the first so far.
func (r *ranks) take(id peer.ID) bool {
	weight := func(id peer.ID) uint64 { return content.Weight(r.key, string(id)) }
	if slices.Contains(r.first, id) {
		return true
	}
	at, _ := slices.BinarySearchFunc(r.first, weight(id), func(p peer.ID, w uint64) int { return cmp.Compare(w, weight(p)) })
	r.first = slices.Insert(r.first, at, id)
	r.first = r.first[:min(len(r.first), firstMax)]
	return at < firstMax
}

func (r *ranks) has(id peer.ID) bool { return slices.Contains(r.first, id) }

// cid is the form in which the DHT takes a key.
func (k Key) cid() cid.Cid {
	digest, err := mh.Encode(k[:], mh.SHA2_256)
	if err != nil { // 32 bytes of a known hash can always be encoded
		panic(fmt.Sprintf("swarm: encode key: %v", err))
	}
	return cid.NewCidV1(cid.Raw, digest)
}

// Key is what a root is announced under.
type Key [32]byte

// KeyFor returns the key of a root. A public root's follows from it; others need the
// secret that members share, so that who carries the DHT learns nothing of it.
func KeyFor(scope content.Scope, root content.CID, secret [32]byte) Key {
	if scope.IsPublic() {
		return sha256.Sum256(append([]byte("grange root "), root[:]...))
	}
	mac := hmac.New(sha256.New, secret[:])
	mac.Write(root[:])
	return Key(mac.Sum(nil))
}

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
