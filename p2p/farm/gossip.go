package farm

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"
)

// face is what memberlist sees of a farm: who may be heard, who lives, and what words and
// certificates travel. It is called with memberlist's own lock held, and so calls nothing
// of it.
type face struct {
	*Farm
	turn int
}

// NotifyAlive implements memberlist.AliveDelegate: only those are let in who say
// themselves where they are.
func (f face) NotifyAlive(n *memberlist.Node) error {
	id, err := parseName(n.Name)
	if err != nil || id == f.self.ID { // of this member memberlist believes no other
		return err
	}
	changed, err := f.hear(id, n.Address(), string(n.Meta))
	if err != nil {
		f.refuse(err)
		return err
	}
	f.note(changed)
	return nil
}

func (f face) NotifyJoin(n *memberlist.Node) { f.NotifyUpdate(n) }

func (f face) NotifyUpdate(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == f.self.ID {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.turn == f.Farm.turn && f.roster.live(id, n.Address()) {
		maps.DeleteFunc(f.lost, func(_ string, a Absence) bool { return a.ID == id }) // it may have moved
		f.publish()
	}
}

func (f face) NotifyLeave(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == f.self.ID {
		return
	}
	f.metrics.lost.Inc()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.turn == f.Farm.turn && f.roster.gone(id) {
		f.lose(Absence{id, n.Address(), f.cfg.Now(), n.State == memberlist.StateLeft})
		f.publish()
	}
}

func (f face) NodeMeta(int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []byte(f.word.raw)
}

// NotifyMsg implements memberlist.Delegate: what a member passes on.
func (f face) NotifyMsg(b []byte) { f.MergeRemoteState(b, false) }

func (f face) GetBroadcasts(overhead, limit int) [][]byte {
	return f.news.GetBroadcasts(overhead, limit)
}

func (f face) LocalState(join bool) []byte {
	b, err := f.codec.Marshal(f.proofs(join))
	if err != nil { // texts can always be encoded
		f.cfg.Log.Error("gossip: the proofs of members can't be encoded", "err", err)
	}
	return b
}

func (f face) MergeRemoteState(b []byte, _ bool) {
	var proofs []proof
	if err := f.codec.Unmarshal(b, &proofs); err != nil {
		f.refuse(err)
		return
	}
	f.believeAll(proofs)
}

type metrics struct {
	all                       *prometheus.Registry
	lost, complaints, refused prometheus.Counter
}

func newMetrics(f *Farm) metrics {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "grange", Subsystem: "farm", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter {
		return to.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	to.NewGaugeFunc(prometheus.GaugeOpts(opts("live_members", "Live members, this one included.")), func() float64 { return float64(len(f.Live())) })
	to.NewGaugeFunc(prometheus.GaugeOpts(opts("missing_members", "Members that are gone without a good-bye.")), func() float64 {
		lost, _ := f.Lost()
		return float64(len(lost))
	})
	return metrics{
		all:        all,
		lost:       counter("lost_members_total", "Members that left or died."),
		complaints: counter("complaints_total", "Warnings and errors of the gossip."),
		refused:    counter("refused_proofs_total", "Words and certificates in gossip that did not hold."),
	}
}

// Collectors returns the metrics of this farm.
func (f *Farm) Collectors() []prometheus.Collector { return []prometheus.Collector{f.metrics.all} }

// A dead neighbour or a port scanner has memberlist complain at every contact. A
// few complaints tell the operator; all of them are counted.
const (
	complaintEvery = time.Minute
	complaintBurst = 3
)

// complaints is where memberlist writes its log, a line a call: all of it goes to
// ours for debugging, and some complaints where they are seen.
type complaints struct {
	log     *slog.Logger
	counted prometheus.Counter
	shown   *rate.Limiter
}

func (c complaints) Write(b []byte) (int, error) {
	level := slog.LevelDebug
	known := bytes.Contains(b, []byte("Refuting an alive message")) // of its earlier start: each restart has it
	if !known && (bytes.HasPrefix(b, []byte("[ERR]")) || bytes.HasPrefix(b, []byte("[WARN]"))) {
		c.counted.Inc()
		if c.shown.Allow() {
			level = slog.LevelInfo
		}
	}
	c.log.Log(context.Background(), level, "gossip", "said", printable(bytes.TrimSpace(b)))
	return len(b), nil
}

// printable takes out of a text what would steer a terminal: others chose its names.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, string(b))
}
