package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// CallPrefix is what the calls of doors to each other begin with.
const CallPrefix = "oci/"

// The calls: who has a blob or may ask the registry for it; whether one has it; a part of it; what a tag
// stands for; and that an image is to be published.
const (
	whoMethod, haveMethod, readMethod = CallPrefix + "who", CallPrefix + "have", CallPrefix + "read"
	tagMethod, publishMethod          = CallPrefix + "tag", CallPrefix + "publish"
)

const (
	// askTimeout bounds a small call. A lead asks others before it answers, within haveTimeout.
	askTimeout, haveTimeout = 3 * time.Second, time.Second
	// readWait is how long a member that gets a blob waits for more of it before it says that nothing came,
	// and readTimeout how long its asker waits. A registry may stop for stallTimeout.
	readWait, readTimeout = registry.StallTimeout + 5*time.Second, registry.StallTimeout + 10*time.Second
	// pieceMax bounds what is read at once: calls carry 1 MiB, and others wait behind it.
	pieceMax = 512 << 10
	// leadFor is how long the right to ask a registry lasts that nobody renews, and renewEvery how often
	// that is done.
	leadFor, renewEvery = 6 * time.Second, 2 * time.Second
	// leadsMax bounds the blobs that a lead knows of, holdersMax those who have one.
	leadsMax, holdersMax = 8192, 64
	// membersAsked bounds the members that are asked whether they have a blob.
	membersAsked = 48
)

// question is that of whoMethod and haveMethod: not is one that the asker got nothing from; done says that
// the asker has it.
type question struct {
	Blob blobID `cbor:"blob"`
	Not  string `cbor:"not"` // a peer ID as bytes
	Done bool   `cbor:"done"`
}

// having is what a member has of a blob.
type having struct {
	Whole bool `cbor:"whole"`
	Pulls bool `cbor:"pulls"` // it asks the registry for it
}

// reading is the question of readMethod.
type reading struct {
	Blob blobID `cbor:"blob"`
	From int64  `cbor:"from"`
}

// tagged is the question of tagMethod.
type tagged struct {
	Place registry.Place `cbor:"place"`
	Ref   string         `cbor:"ref"`
}

// lead knows who has the blobs that this node leads, or asks a registry for them. Safe for concurrent use.
type lead struct {
	now func() time.Time
	mu  sync.Mutex // guards what follows
	all *lru.Cache[blobID, *led]
}

// led is what is known of one blob.
type led struct {
	asking  sync.Mutex // held while others are asked
	puller  peer.ID
	until   time.Time // the puller's right lasts
	holders []peer.ID
	turn    int
}

func newLead(now func() time.Time) (*lead, error) {
	all, err := lru.New[blobID, *led](leadsMax)
	return &lead{now: now, all: all}, err
}

func (l *lead) of(id blobID) (one *led, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one, ok := l.all.Get(id)
	if !ok {
		one = &led{}
		l.all.Add(id, one)
	}
	return one, !ok || one.puller == "" && len(one.holders) == 0
}

// answer says whom to read from; it is the asker itself that is to ask the registry.
func (l *lead) answer(asker peer.ID, q question, live []peer.ID) peer.ID {
	one, _ := l.of(q.Blob)
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := func(id peer.ID) bool { return string(id) == q.Not || !slices.Contains(live, id) }
	if q.Done {
		if !slices.Contains(one.holders, asker) && len(one.holders) < holdersMax {
			one.holders = append(one.holders, asker)
		}
		if one.puller == asker {
			one.puller = ""
		}
		return asker
	}
	one.holders = slices.DeleteFunc(one.holders, func(id peer.ID) bool { return gone(id) || id == asker })
	if len(one.holders) > 0 {
		one.turn++
		return one.holders[one.turn%len(one.holders)]
	}
	if one.puller != "" && one.puller != asker && !gone(one.puller) && l.now().Before(one.until) {
		return one.puller
	}
	one.puller, one.until = asker, l.now().Add(leadFor)
	return asker
}

// heard notes what a member says that it has.
func (l *lead) heard(id blobID, from peer.ID, has having) {
	one, _ := l.of(id)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case has.Whole && !slices.Contains(one.holders, from) && len(one.holders) < holdersMax:
		one.holders = append(one.holders, from)
	case has.Pulls && one.puller == "":
		one.puller, one.until = from, l.now().Add(leadFor)
	}
}

// ranked are the live members in the order in which they lead something.
func (d *Door) ranked(key string) []peer.ID {
	live := slices.Clone(d.cfg.Live())
	slices.SortFunc(live, func(a, b peer.ID) int {
		wa, wb := content.Weight(key, string(a)), content.Weight(key, string(b))
		switch {
		case wa > wb:
			return -1
		case wa < wb:
			return 1
		}
		return strings.Compare(string(a), string(b))
	})
	return live
}

// who asks the lead of a blob whom to read it from, of which not is none. It is this node where it is to
// ask the registry.
func (d *Door) who(ctx context.Context, id blobID, not peer.ID) (peer.ID, error) {
	return d.askLead(ctx, question{Blob: id, Not: string(not)})
}

func (d *Door) askLead(ctx context.Context, q question) (peer.ID, error) {
	for _, lead := range d.ranked(q.Blob.String()) {
		if lead == d.cfg.Self {
			return d.answerWho(ctx, lead, q), nil
		}
		call, cancel := context.WithTimeout(ctx, askTimeout)
		said, err := ask[question, []byte](call, d, lead, whoMethod, q)
		cancel()
		if err == nil {
			return peer.ID(said), nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
	return d.cfg.Self, nil
}

// ask is one call to a member.
func ask[Q, A any](ctx context.Context, d *Door, to peer.ID, method string, q Q) (a A, err error) {
	body, err := d.cfg.Codec.Marshal(q)
	if err == nil {
		body, err = d.cfg.Call(ctx, to, method, body)
	}
	if err == nil {
		err = d.cfg.Codec.Unmarshal(body, &a)
	}
	return a, err
}

// answerWho answers as the lead of a blob. One that it knows nothing of may be with members all the same:
// this node may be the lead since a moment.
func (d *Door) answerWho(ctx context.Context, asker peer.ID, q question) peer.ID {
	if one, fresh := d.lead.of(q.Blob); fresh && !q.Done {
		one.asking.Lock()
		defer one.asking.Unlock()
		if _, fresh := d.lead.of(q.Blob); fresh {
			d.askAll(ctx, q.Blob, asker)
		}
	}
	return d.lead.answer(asker, q, d.cfg.Live())
}

// askAll asks members whether they have a blob.
func (d *Door) askAll(ctx context.Context, id blobID, but peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, haveTimeout)
	defer cancel()
	var all sync.WaitGroup
	for i, member := range d.ranked(id.String()) {
		if i >= membersAsked || member == but {
			continue
		}
		all.Go(func() {
			has, err := d.having(id), error(nil)
			if member != d.cfg.Self {
				has, err = ask[question, having](ctx, d, member, haveMethod, question{Blob: id})
			}
			if err == nil {
				d.lead.heard(id, member, has)
			}
		})
	}
	all.Wait()
}

func (d *Door) having(id blobID) having {
	x := d.blobs.get(id)
	if x == nil {
		return having{}
	}
	defer x.close()
	_, whole, pulls, _, _ := x.state()
	return having{whole, pulls}
}

// keepLead renews the right to ask a registry for a blob until ctx ends: a lead that has just become one
// learns of it so.
func (d *Door) keepLead(ctx context.Context, id blobID) {
	tick := time.Tick(renewEvery)
	for {
		select {
		case <-tick:
			_, _ = d.who(ctx, id, "")
		case <-ctx.Done():
			return
		}
	}
}

// tellDone tells the lead of a blob that this node has it.
func (d *Door) tellDone(ctx context.Context, id blobID) {
	_, _ = d.askLead(ctx, question{Blob: id, Done: true})
}

// readOf reads what a member has of a blob from a byte on; nothing where nothing came to it for a while.
func (d *Door) readOf(ctx context.Context, from peer.ID, id blobID, off int64) ([]byte, error) {
	body, err := d.cfg.Codec.Marshal(reading{id, off})
	if err != nil {
		return nil, err
	}
	return d.cfg.Call(ctx, from, readMethod, body)
}

// answerRead is the other end of readOf.
func (d *Door) answerRead(ctx context.Context, q reading) ([]byte, error) {
	x := d.blobs.get(q.Blob)
	if x == nil {
		return nil, fmt.Errorf("blob %.80q: %w", q.Blob.Digest, content.ErrNotFound)
	}
	if q.From < 0 || q.From >= x.size {
		x.close()
		return nil, fmt.Errorf("blob %s from %d of %d bytes: %w", q.Blob.Digest, q.From, x.size, content.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	r, err := x.read(ctx, q.From, x.size, 0)
	if err != nil {
		x.close()
		return nil, err
	}
	defer r.Close()
	b := make([]byte, min(pieceMax, x.size-q.From))
	n, err := r.Read(b)
	if n > 0 || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}

// askTag asks the farm what a tag stood for when its registry was there, and takes the latest word.
func (d *Door) askTag(ctx context.Context, p registry.Place, ref string) (best registry.Tag, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make(chan registry.Tag, membersAsked)
	var all sync.WaitGroup
	for i, member := range d.ranked(p.Prefix()) {
		if member != d.cfg.Self && i < membersAsked {
			all.Go(func() {
				if t, err := ask[tagged, registry.Tag](ctx, d, member, tagMethod, tagged{p, ref}); err == nil && registry.CheckDigest(t.Item.Digest) == nil && t.Item.Size >= 0 {
					answers <- t
				}
			})
		}
	}
	all.Wait()
	close(answers)
	for t := range answers {
		if t.At = earlier(t.At, d.cfg.Now()); !ok || t.At.After(best.At) {
			best, ok = t, true
		}
	}
	return best, ok
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Answer answers a call of another door. Members of this farm alone have one: they see to it themselves who
// may read what.
func (d *Door) Answer(ctx context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	if who := from.Identity; d == nil || !who.Role.IsMember() || who.Farm != d.cfg.Farm {
		return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
	}
	codec := d.cfg.Codec
	switch method {
	case whoMethod:
		return membership.Answer(codec, body, func(q question) ([]byte, error) {
			if err := q.Blob.check(); err != nil {
				return nil, err
			}
			return []byte(d.answerWho(ctx, from.ID, q)), nil
		})
	case haveMethod:
		return membership.Answer(codec, body, func(q question) (having, error) { return d.having(q.Blob), nil })
	case readMethod:
		var q reading
		if err := codec.Unmarshal(body, &q); err != nil {
			return nil, err
		}
		return d.answerRead(ctx, q)
	case tagMethod:
		return membership.Answer(codec, body, func(q tagged) (registry.Tag, error) {
			t, ok := d.known.Tag(q.Place, q.Ref)
			if !ok {
				return t, fmt.Errorf("%s of %s: %w", q.Ref, q.Place, content.ErrNotFound)
			}
			return t, nil
		})
	case publishMethod:
		return membership.Answer(codec, body, func(q image) (struct{}, error) { return struct{}{}, d.publish(ctx, q) })
	}
	return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
}
