package records

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

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
)

// Config is what Names is built from.
type Config struct {
	// Dir holds a file for each record.
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
	// Submit has a member write a record. ErrUnavailable means that none is able to.
	Submit func(ctx context.Context, s Submission) (Answer, error)
	// Learn is told what a name stands for, at each look; Forget when no name stands
	// for that root in that scope any more. They are called one at a time.
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
	// others bounds the looks at the origin that members ask for.
	others *rate.Limiter

	disputes, refused prometheus.Counter

	saving   sync.Mutex // one save at a time
	changing sync.Mutex // one change at a time, with what Learn and Forget are told of it; before mu

	mu      sync.RWMutex // guards what follows
	entries map[string]entry
	roots   map[rootKey]int  // how many names stand for each
	absent  lately           // what the origin does not have
	taken   map[string]Known // what was at the origin and is not, without having been deleted
}

// rootKey is a root under one scope.
type rootKey struct {
	root  content.CID
	scope content.Scope
}

// New builds Names and reads the records on disk: what they say is unconfirmed until
// the origin was asked.
func New(cfg Config) (*Names, error) {
	n := &Names{
		cfg: cfg, strangers: strangers{budget: rate.NewLimiter(strangersRate, strangersBurst), denied: lately{}}, others: rate.NewLimiter(othersRate, othersBurst),
		entries: map[string]entry{}, roots: map[rootKey]int{}, absent: lately{}, taken: map[string]Known{},
		disputes: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "records", Name: "disputes_total",
			Help: "Times that the origin showed another record than it had shown before, or than members saw there.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "grange", Subsystem: "records", Name: "refused_answers_total", Help: "Answers of members that were not believed.",
		}),
	}
	return n, n.load()
}

// Collectors returns the metrics.
func (n *Names) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.disputes, n.refused}
}

func key(kind content.Kind, name string) string { return string(kind.Space()) + "/" + name }

// Resolve says what a name stands for: an image or tag, else a volume of this
// farm. Without trust only public content exists, and everything else is absent
// alike.
func (n *Names) Resolve(ctx context.Context, name string, trusted bool) (Resolved, error) {
	kinds, bare := []content.Kind{content.KindImage, content.KindVolume}, name
	if kind, rest, ok := strings.Cut(name, ":"); ok {
		kinds, bare = []content.Kind{content.Kind(kind)}, rest
	}
	if !trusted {
		k, err := n.public(ctx, kinds[0], bare)
		return n.resolved(k), err
	}
	var first error
	for _, kind := range kinds {
		k, err := n.Lookup(ctx, kind, bare, false)
		if err == nil {
			return n.resolved(k), nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, content.ErrNotFound) {
			break
		}
	}
	return Resolved{}, first
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
// if it can be reached; otherwise one that is some seconds old may do. Deleted
// names are ErrNotFound, with their tombstone.
func (n *Names) Lookup(ctx context.Context, kind content.Kind, name string, fresh bool) (Known, error) {
	if err := kind.CheckName(name); err != nil { // it becomes a path
		return Known{}, err
	}
	k, ok, err := n.recent(kind, name)
	if !ok || fresh {
		k, err = n.lookFor(ctx, kind, name, n.cfg.Lost)
	}
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
	n.mu.RLock()
	defer n.mu.RUnlock()
	if e, held := n.entries[id]; held {
		return e.answer(), now.Sub(e.checked) <= freshFor, nil
	}
	if n.absent.has(id, now) {
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
	n.mu.RLock()
	defer n.mu.RUnlock()
	e, ok := n.entries[key(kind, name)]
	if !ok {
		return Known{}, false
	}
	return e.answer(), true
}

// Of returns all records held of a namespace, deleted names left out, by name.
func (n *Names) Of(space content.Kind) []Known {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []Known
	for _, e := range n.entries {
		if k := e.answer(); k.Kind.Space() == space && !k.Tombstone {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b Known) int { return strings.Compare(a.Name, b.Name) })
	return out
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

// describe checks what a record says.
func (n *Names) describe(r catalog.Record) (Known, error) {
	d, err := catalog.Describe(n.cfg.Codec, r.Envelope)
	return Known{Record: r, Content: d}, err
}

// Recheck drops what the Verifier believes no more; call it when keys were revoked.
func (n *Names) Recheck() {
	n.mu.RLock()
	all := maps.Clone(n.entries)
	n.mu.RUnlock()
	for id, e := range all {
		if said, heard := n.isBad(e.said), n.isBad(e.heard); said || heard {
			n.change(id, func(now entry) entry {
				if said && now.said != nil && now.said.Commit == e.said.Commit {
					now.said = nil
				}
				if heard && now.heard != nil && now.heard.Commit == e.heard.Commit {
					now.heard = nil
				}
				now.checked = time.Time{}
				return now
			})
		}
	}
}

func (n *Names) isBad(k *Known) bool {
	if k == nil {
		return false
	}
	_, err := n.cfg.Verifier.Open(k.Sealed, k.first, n.cfg.Now())
	if err != nil {
		n.cfg.Log.Warn("a record is believed no more", "kind", k.Kind, "name", k.Name, "version", k.Version, "err", err)
	}
	return err != nil
}
