package farm

import (
	"github.com/hashicorp/memberlist"
)

// gate, events and delegate are the faces that memberlist wants. It calls gate and
// events with its own lock held, so none of them calls it.

// gate lets in only those who say themselves where they are.
type gate struct{ f *Farm }

// NotifyAlive implements memberlist.AliveDelegate.
func (g gate) NotifyAlive(n *memberlist.Node) error {
	id, err := parseName(n.Name)
	if err != nil || id == g.f.self.ID { // of this member memberlist believes no other
		return err
	}
	changed, err := g.f.hear(id, n.Address(), string(n.Meta))
	if err != nil {
		g.f.refuse(err)
		return err
	}
	g.f.note(changed)
	return nil
}

// events tell who lives.
type events struct{ f *Farm }

// NotifyJoin implements memberlist.EventDelegate.
func (e events) NotifyJoin(n *memberlist.Node) {
	e.f.metrics.joined.Inc()
	e.NotifyUpdate(n)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (e events) NotifyUpdate(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == e.f.self.ID {
		return
	}
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if e.f.roster.live(id, n.Address()) {
		delete(e.f.lost, n.Address())
		e.f.publish()
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (e events) NotifyLeave(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == e.f.self.ID {
		return
	}
	e.f.metrics.lost.Inc()
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if e.f.roster.gone(id) {
		e.f.lose(Absence{id, n.Address(), e.f.cfg.Now(), n.State == memberlist.StateLeft})
		e.f.publish()
	}
}

// delegate carries words and certificates.
type delegate struct{ f *Farm }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(int) []byte {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	return []byte(d.f.word.raw)
}

// NotifyMsg implements memberlist.Delegate: a certificate that a member passes on.
func (d delegate) NotifyMsg(b []byte) {
	var p proof
	if err := d.f.codec.Unmarshal(b, &p); err != nil {
		d.f.refuse(err)
		return
	}
	d.f.takeAll([]proof{p})
}

// GetBroadcasts implements memberlist.Delegate.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.f.news.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d delegate) LocalState(join bool) []byte {
	b, err := d.f.codec.Marshal(d.f.proofs(join))
	if err != nil { // texts can always be encoded
		d.f.cfg.Log.Error("gossip: the proofs of members can't be encoded", "err", err)
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	var proofs []proof
	if err := d.f.codec.Unmarshal(b, &proofs); err != nil {
		d.f.refuse(err)
		return
	}
	d.f.takeAll(proofs)
}
