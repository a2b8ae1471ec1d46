package membership

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// contactInterval is how often a member looks for new connections, to compare news.
	contactInterval = time.Second
	// compareInterval is how often it compares again with compareAtOnce members, for lost
	// news: it is everywhere within a minute though each is lost once.
	compareInterval = 20 * time.Second
	compareAtOnce   = 3
	// greetRetry is when one that did not answer is greeted again.
	greetRetry = 10 * time.Second
	// greetAtOnce bounds the greetings under way: a thousand members take seconds.
	greetAtOnce = 64
	// caughtAfter is how long after a member that was away has compared with one it
	// has heard from others too what that one may keep to itself.
	caughtAfter = time.Minute
	// newsMax is how many revocations one message carries: within a call's size.
	newsMax = 200
)

// greeting is what two members say of themselves, to find out what the other lacks.
type greeting struct {
	Chain trust.Chain `cbor:"chain"`
	Name  string      `cbor:"name"`
	// Digest is of all revoked keys that are known.
	Digest [32]byte `cbor:"digest"`
	// Rotation is the newest that is known.
	Rotation []byte `cbor:"rotation"`
	// News are revocations that the other may not know.
	News []revoked `cbor:"news"`
	// Incarnation is the sayer's, Other one of the other heard before: twins learn so.
	Incarnation []byte `cbor:"incarnation"`
	Other       []byte `cbor:"other"`
}

// incarnationMax bounds what a member says of a start of it: some addresses.
const incarnationMax = 4 << 10

func (m *Membership) greeting(news []revoked) greeting {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return greeting{m.state.Chain, m.cfg.Name, m.digest, m.notice, news, m.cfg.Incarnation(), nil}
}

func (m *Membership) greeted(who trust.Identity, g greeting) (greeting, error) {
	if err := m.hear(who, g); err != nil {
		return greeting{}, err
	}
	reply := m.greeting(nil)
	reply.Other = m.started(who.Key, g.Incarnation)
	return reply, nil
}

// started notes the incarnation of a member, and returns the one before.
func (m *Membership) started(key trust.PublicKey, incarnation []byte) (before []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before = m.starts[key]
	if len(incarnation) == 0 || len(incarnation) > incarnationMax || bytes.Equal(before, incarnation) {
		return nil
	}
	if before == nil && len(m.starts) >= rollMax {
		clear(m.starts)
	}
	m.starts[key] = incarnation
	return before
}

// hear takes what a member says.
func (m *Membership) hear(who trust.Identity, g greeting) error {
	if len(g.News) > newsMax {
		return fmt.Errorf("greeting: %w: %d revocations, the limit is %d", content.ErrInvalid, len(g.News), newsMax)
	}
	now := m.cfg.Now()
	id, err := m.verifier.Recognize(g.Chain, now)
	if err == nil && id.Key != who.Key {
		err = fmt.Errorf("%w: it shows the certificate of %s", content.ErrForbidden, id.Key)
	}
	if err != nil {
		return fmt.Errorf("greeting of %s: %w", who.Key, err)
	}
	if _, err := m.verifier.Verify(g.Chain, now); err == nil {
		m.roll.proved(g.Chain, g.Name, now) // before the news, which may be about it
	}
	m.learn(toldBy(g.News))
	m.hearRotation(g.Rotation)
	if len(g.Other) > 0 {
		m.cfg.OnIncarnation(g.Other)
	}
	return nil
}

// greet compares what is known with a member, and evens it out both ways.
func (m *Membership) greet(ctx context.Context, id peer.ID, news []revoked) (trust.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	who, err := m.network.Meet(ctx, id)
	if err != nil {
		return who, err
	}
	var g greeting
	if err := m.call(ctx, id, greetMethod, m.greeting(news), &g); err != nil {
		return who, err
	}
	g.News = nil // an answer has none
	if err := m.hear(who, g); err != nil {
		return who, err
	}
	if g.Digest != m.greeting(nil).Digest {
		if err := m.even(ctx, id); err != nil {
			return who, err
		}
	}
	m.catchUp()
	return who, nil
}

// catchUp notes that this member knows all that there was to know at the last time.
func (m *Membership) catchUp() {
	now := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.compared) < caughtAfter {
		return
	}
	if !m.compared.IsZero() {
		m.roll.catchUp(m.compared)
	}
	m.compared = now
}

type contact struct {
	who    trust.Identity // zero until it was greeted
	trying bool
	next   time.Time // zero: it is well
}

// contacts are the connections of this moment.
type contacts struct {
	mu  sync.Mutex
	all map[peer.ID]contact
}

// due returns those who are to be greeted now, and marks them; and who is gone.
func (c *contacts) due(peers []peer.ID, again int, now time.Time) (greet []peer.ID, gone []trust.PublicKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := make(map[peer.ID]contact, len(peers))
	for _, id := range peers {
		next[id] = c.all[id]
		if _, had := c.all[id]; !had {
			next[id] = contact{next: now}
		}
	}
	for id, k := range c.all {
		if _, still := next[id]; !still && k.who.Role != "" {
			gone = append(gone, k.who.Key)
		}
	}
	for id, k := range next {
		well := k.next.IsZero()
		if k.trying || len(greet) == greetAtOnce || well && again == 0 || !well && now.Before(k.next) {
			continue
		}
		if well {
			again--
		}
		k.trying = true
		next[id] = k
		greet = append(greet, id)
	}
	c.all = next
	return greet, gone
}

// greeted notes how a greeting went, and reports whether it was the first of a member.
func (c *contacts) greeted(id peer.ID, who trust.Identity, err error, now time.Time) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.all[id]
	if !ok { // it went meanwhile
		return false
	}
	first = k.who.Role == "" && who.Role != "" && err == nil
	k.trying, k.next = false, time.Time{}
	if who.Role != "" {
		k.who = who
	}
	if err != nil {
		k.next = now.Add(greetRetry/2 + rand.N(greetRetry))
	}
	c.all[id] = k
	return first
}

// member is one that this member is connected with.
type member struct {
	id  peer.ID
	who trust.Identity
}

// connected returns the members that this one is connected with, in any order.
func (m *Membership) connected() []member {
	m.contacts.mu.Lock()
	defer m.contacts.mu.Unlock()
	var out []member
	for id, k := range m.contacts.all {
		if _, gone := m.verifier.Revoked(k.who.Key); k.who.Role != "" && !gone {
			out = append(out, member{id, k.who})
		}
	}
	return out
}

// keepGreeted greets whom this member meets, until ctx ends.
func (m *Membership) keepGreeted(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	compared := time.Now()
	every(ctx, contactInterval, nil, func() {
		again := 0
		if time.Since(compared) >= compareInterval {
			again, compared = compareAtOnce, time.Now()
		}
		greet, gone := m.contacts.due(m.network.Peers(), again, time.Now())
		for _, key := range gone {
			m.cfg.Log.Info("a member is not connected any more", m.names(key)...)
		}
		for _, id := range greet {
			under.Go(func() {
				who, err := m.greet(ctx, id, nil)
				if err == nil && (m.behind() || m.verifier.Orphaned(m.State().Chain)) {
					defer nudge(m.seek) // here is one more to ask
				}
				if m.contacts.greeted(id, who, err, time.Now()) {
					m.cfg.Log.Info("a member is connected", m.names(who.Key)...)
				}
			})
		}
	})
}

// names are a member's in the log.
func (m *Membership) names(key trust.PublicKey) []any {
	who := m.Who(key)
	return []any{"name", who.Name, "peer", who.ID, "role", who.Role, "farm", who.Farm}
}

// keepTold tells connected members what is new, until ctx ends.
func (m *Membership) keepTold(ctx context.Context) {
	for {
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		news := m.news
		m.news = nil
		m.mu.Unlock()
		for first := true; first || len(news) > 0; first = false {
			n := min(len(news), newsMax)
			m.tellAll(ctx, news[:n])
			news = news[n:]
		}
	}
}

// tellAll tells all members that are connected, and returns how many have heard.
func (m *Membership) tellAll(ctx context.Context, news []revoked) int {
	if m.network == nil {
		return 0
	}
	var all errgroup.Group
	var told atomic.Int64
	all.SetLimit(greetAtOnce)
	for _, id := range m.network.Peers() {
		all.Go(func() error {
			if _, err := m.greet(ctx, id, news); err == nil {
				told.Add(1)
			}
			return nil
		})
	}
	all.Wait()
	return int(told.Load())
}
