// Package records is the one owner of what this node knows of names: what the origin
// said, what members say beyond that, and how far either is believed. It looks names
// up (memory, origin, members, disk), writes them, and answers others. Content, its
// bytes and who gets them are other packages' affair.
//
// Two things may be known of a name at once. What the origin said to this node stands
// until the origin says another thing. What members say is heard beside it: it may be
// the answer while the origin is away, and it never moves what the origin said.
package records

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// freshFor is how old an answer may be to be given again from memory: a re-tag is
	// seen everywhere within this and one request. The same holds for absence.
	freshFor = 5 * time.Second
	// absentMax bounds the names that are remembered to be absent: whoever asks makes
	// them up.
	absentMax = 10_000
	// entriesMax bounds the names of which all is in memory, some 8 KiB each, and
	// answersMax those of which the answer is, some 400 bytes each: as many as a core
	// may be asked for while they are fresh.
	entriesMax = 4096
	answersMax = 1 << 18
	// namesAtOnce is how many names are taken from the index at once where all are
	// looked through.
	namesAtOnce = 1000
)

// Config is what Names is built from.
type Config struct {
	// Dir holds what is known of names.
	Dir string
	// Reader returns the origin's catalog, nil while it does not answer; Writer the
	// same while it takes no writes. Lost is told of its failures, but for those that
	// a stranger's question met.
	Reader, Writer func() *catalog.Catalog
	Lost           func(error)
	Verifier       *trust.Verifier
	Signer         trust.Signer
	// Ask returns what up to limit members say, of this farm first and of others; it
	// ends with ctx at the latest.
	Ask func(ctx context.Context, q Question, limit int) []Answer
	// AskLead asks a member of this farm for its own word, and says who it is; an error
	// is of one that does not answer at all. Think asks the planner who leads; nil is for a
	// node that has no farm.
	AskLead func(ctx context.Context, p plan.Peer, q Question) (Answer, error)
	Think   func(func(*plan.Member))
	// Submit has a member write a record. ErrUnavailable means that none is able to.
	Submit func(ctx context.Context, s Submission) (Answer, error)
	// Holds reports whether this node may have content of a map, by the map's root; nil is
	// for always.
	// Learn is told what a name stands for that it holds, at each look and at the start;
	// Forget when no name stands for that root in that scope any more. They are called
	// one at a time.
	Holds  func(content.CID) bool
	Learn  func(Known)
	Forget func(root content.CID, scope content.Scope)
	Codec  *content.Codec
	Now    func() time.Time
	Log    *slog.Logger
}

// Known is a record with what is known of it.
type Known struct {
	catalog.Record
	catalog.Content
	// Confirmed says that this node has just read it at the origin, or that members of
	// enough farms have.
	Confirmed bool
	// Doubt says why another record than the one that the origin shows is the answer;
	// "" when it is not.
	Doubt string

	// first is the earliest time at which somebody honest saw it, which is what the
	// Verifier is asked by; read is when this node last saw it at the origin.
	first, read time.Time
	// agreed is when members of enough farms had last confirmed it.
	agreed time.Time
	// statement is the word of the member that it was heard from; over is the ETag that
	// one of this node's own was written over by a member.
	statement []byte
	over      string
	// against is what the origin shows in the place of one that was heard.
	against trust.Commit
	// unproved says that this node has written it, and not seen since that all is there that it names.
	unproved bool
}

// Resolved is what a name stands for.
type Resolved struct {
	Kind      content.Kind  `json:"kind"`
	Name      string        `json:"name"`
	CID       content.CID   `json:"cid" doc:"the root that the name stands for"`
	Size      int64         `json:"size" doc:"bytes"`
	Version   uint64        `json:"version"`
	Age       float64       `json:"age_seconds" doc:"time since a member of the mesh saw this version at the origin"`
	Confirmed bool          `json:"confirmed" doc:"false when the origin did not answer and this is the newest version that members know, or when the origin contradicts itself"`
	Scope     content.Scope `json:"scope"`
	Warning   string        `json:"warning,omitempty" doc:"what is wrong with the name at the origin"`
}

// Names resolves names: from memory while fresh, then from the origin, then from
// members. Records are kept on disk, so that a node that restarts while the
// origin is away still knows them. Safe for concurrent use.
type Names struct {
	cfg     Config
	flights singleflight.Group // looks for a name
	gets    singleflight.Group // reads at the origin, which may outlive their look

	strangers strangers
	// others bounds the looks at the origin that members ask for, and leads those of the
	// same farm.
	others, leads *rate.Limiter

	disputes, refused prometheus.Counter

	changing sync.Mutex // one change at a time, with what Learn and Forget are told of it; before mu

	syncing atomic.Bool // the disk is about to be synced
	syncs   sync.WaitGroup

	index   *index
	mu      sync.RWMutex // guards what follows
	entries *lru[entry]
	answers *lru[answered]
	absent  lately // what the origin does not have
	unseen  lately // what leads say that it does not have
}

// lru keeps what was set or wanted last, by name.
type lru[V any] = simplelru.LRU[string, V]

func newLRU[V any](size int) *lru[V] {
	l, _ := simplelru.NewLRU[string, V](size, nil) // fails for sizes below 1 only
	return l
}

type rootKey struct {
	root  content.CID
	scope content.Scope
}

// New builds Names, and reads where on disk each record is: what they say is
// unconfirmed until the origin was asked. Close ends it.
func New(cfg Config) (*Names, error) {
	if cfg.Holds == nil {
		cfg.Holds = func(content.CID) bool { return true }
	}
	n := &Names{
		cfg: cfg, strangers: strangers{budget: rate.NewLimiter(strangersRate, strangersBurst), denied: lately{}}, others: rate.NewLimiter(othersRate, othersBurst),
		entries: newLRU[entry](entriesMax), answers: newLRU[answered](answersMax), absent: lately{}, unseen: lately{}, leads: rate.NewLimiter(leadsRate, leadsBurst),
		disputes: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "records", Name: "disputes_total",
			Help: "Times that the origin showed another record than it had shown before, or than members saw there.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "records", Name: "refused_answers_total", Help: "Answers of members that were not believed.",
		}),
	}
	var held []string
	var damaged int
	var err error
	n.index, damaged, err = openIndex(filepath.Join(cfg.Dir, "index"), cfg.Codec, func(p piece) {
		if slices.ContainsFunc(p.Maps, cfg.Holds) {
			held = append(held, p.ID)
		}
	})
	if err != nil {
		return nil, err
	}
	if damaged > 0 {
		cfg.Log.Warn("some of what is known of names was damaged on disk, and is asked for anew", "names", damaged)
	}
	n.learnHeld(held)
	return n, nil
}

// Close closes what is on disk; Names is not used any more.
func (n *Names) Close() error {
	n.syncs.Wait()
	return n.index.close()
}

// Collectors returns the metrics.
func (n *Names) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.disputes, n.refused}
}

// key is that of a name in the index, in whose order the origin lists names too.
func key(kind content.Kind, name string) string {
	return string(kind.Space()) + "/" + content.Segment(name)
}

// Resolve says what a name stands for: an image or tag, else a volume of this
// farm. Without trust only public content exists, and everything else is absent
// alike.
func (n *Names) Resolve(ctx context.Context, name string, trusted bool) (Resolved, error) {
	kinds := []content.Kind{content.KindImage, content.KindVolume}
	kind, bare := content.CutKind(name)
	if kind != "" {
		kinds = []content.Kind{kind}
	}
	if !trusted {
		k, err := n.public(ctx, kinds[0], bare)
		return n.resolved(k), err
	}
	var first error
	for _, kind := range kinds {
		if r, ok := n.answered(kind, bare); ok {
			return r, nil
		}
		k, err := n.Lookup(ctx, kind, bare, false)
		if err == nil {
			return n.resolved(k), nil
		}
		first = cmp.Or(first, err)
		if !errors.Is(err, content.ErrNotFound) {
			break
		}
	}
	return Resolved{}, first
}

// answered returns what a name stands for, if it was looked for just now.
func (n *Names) answered(kind content.Kind, name string) (Resolved, bool) {
	now := n.cfg.Now()
	n.mu.RLock()
	a, ok := n.answers.Peek(key(kind, name))
	n.mu.RUnlock()
	a.Age = max(0, now.Sub(time.Unix(0, a.seen))).Seconds()
	return a.Resolved, ok && now.Sub(time.Unix(0, a.asked)) <= freshFor
}

func (n *Names) resolved(k Known) Resolved {
	r := Resolved{Kind: k.Kind, Name: k.Name, CID: k.Root, Version: k.Version, Age: n.Age(k).Seconds(), Confirmed: k.Confirmed, Scope: k.Scope, Warning: k.Doubt}
	if k.Head != nil {
		r.Size = k.Head.Root.Size
	}
	return r
}

// Sure reports whether a record is good for what can't be undone: read at the origin just
// now, or seen there by members of enough farms, or an admin. Else a single member may
// have made it up.
func (n *Names) Sure(k Known) bool {
	if k.Confirmed {
		return true
	}
	st, err := n.cfg.Verifier.OpenStatement(k.statement, n.cfg.Now())
	return err == nil && k.Doubt == "" && st.Signer.Role == trust.RoleAdmin
}

// Age is the time since a record was seen at the origin; by clocks that differ it is
// never negative.
func (n *Names) Age(k Known) time.Duration { return max(0, n.cfg.Now().Sub(k.SeenAt)) }

// Lookup returns the record of a name. A fresh one is asked of the origin again
// if it can be reached, by this node itself; otherwise one that is some seconds old
// may do, and the word of the farm's leads. Deleted names are ErrNotFound, with their
// tombstone.
func (n *Names) Lookup(ctx context.Context, kind content.Kind, name string, fresh bool) (k Known, err error) {
	if !fresh {
		return n.LookupVersion(ctx, kind, name, 0)
	}
	if err := kind.CheckName(name); err != nil { // it becomes a path
		return Known{}, err
	}
	return n.found(n.look(ctx, kind, name, n.cfg.Now(), n.cfg.Lost))
}

// LookupVersion is Lookup of one that some seconds old will do for, where a member speaks
// of that version: an older one will not, unless who is asked now has no later one.
func (n *Names) LookupVersion(ctx context.Context, kind content.Kind, name string, version uint64) (Known, error) {
	if err := kind.CheckName(name); err != nil {
		return Known{}, err
	}
	k, ok, err := n.recent(kind, name)
	if !ok || k.Version < version {
		k, err = n.near(ctx, Question{Kind: kind, Name: name, Version: version, Lead: true}, n.cfg.Lost)
	}
	return n.found(k, err)
}

func (n *Names) found(k Known, err error) (Known, error) {
	if err == nil && k.Tombstone {
		return k, fmt.Errorf("%s %q: %w: it was deleted on %s", k.Kind, k.Name, content.ErrNotFound, k.SignedAt.UTC().Format(time.DateTime))
	}
	if err != nil {
		return Known{}, err
	}
	return k, nil
}

// recent returns what is known of a name; ok says that it was looked for just now, and
// the error that it was not there.
func (n *Names) recent(kind content.Kind, name string) (k Known, ok bool, err error) {
	now, id := n.cfg.Now(), key(kind, name)
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.entry(id); !e.isEmpty() {
		return e.answer(), now.Sub(e.checked) <= freshFor, nil
	}
	if n.absent.has(id, now) || n.unseen.has(id, now) {
		return Known{}, true, notFound(kind, name)
	}
	return Known{}, false, nil
}

// notFound is in grange's words: the bucket's own would not help.
func notFound(kind content.Kind, name string) error {
	return fmt.Errorf("%s %.140q: %w", kind, name, content.ErrNotFound)
}

// Held returns the record of a name if this node has it, whatever its age.
func (n *Names) Held(kind content.Kind, name string) (Known, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry(key(kind, name))
	if e.isEmpty() {
		return Known{}, false
	}
	return e.answer(), true
}

// Introduced reads a record that a member sent because it is going to ask for the
// root in it. It is not remembered. One of a name that this node knows to be deleted
// since is ErrNotFound: what it opened is closed.
func (n *Names) Introduced(sealed []byte) (Known, error) {
	now := n.cfg.Now()
	e, err := n.cfg.Verifier.Open(sealed, now, now)
	if err != nil {
		return Known{}, err
	}
	k, err := n.describe(catalog.Record{Envelope: e, Sealed: sealed, SeenAt: e.SignedAt})
	if held, ok := n.Held(e.Kind, e.Name); err == nil && ok && held.Tombstone && held.Version > e.Version {
		err = fmt.Errorf("introduce %s %q: %w", e.Kind, e.Name, content.ErrNotFound)
	}
	if err == nil && k.Head == nil {
		err = fmt.Errorf("introduce %s %q: %w: it has no root", e.Kind, e.Name, content.ErrInvalid)
	}
	return k, err
}

func (n *Names) describe(r catalog.Record) (Known, error) {
	d, err := catalog.Describe(n.cfg.Codec, r.Envelope)
	return Known{Record: r, Content: d}, err
}

// Recheck drops what the Verifier believes no more; call it when keys were revoked.
func (n *Names) Recheck() {
	last := ""
	for {
		ids := n.index.names(last, namesAtOnce)
		if len(ids) == 0 {
			break
		}
		for _, id := range ids {
			n.recheck(id)
		}
		last = ids[len(ids)-1]
	}
	n.sync()
}

func (n *Names) recheck(id string) {
	n.apply(id, func(e entry) entry {
		for _, k := range []**Known{&e.said, &e.heard, &e.taken} {
			if n.isBad(*k) {
				*k = nil
				e.checked = time.Time{}
			}
		}
		return e
	})
}

func (n *Names) isBad(k *Known) bool {
	if k == nil {
		return false
	}
	_, err := n.cfg.Verifier.Reopen(k.Sealed, k.first, n.cfg.Now())
	if err != nil {
		n.cfg.Log.Warn("a record is believed no more", "kind", k.Kind, "name", k.Name, "version", k.Version, "err", err)
	}
	return err != nil
}
