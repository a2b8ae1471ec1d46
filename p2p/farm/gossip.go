package farm

import (
	"github.com/hashicorp/memberlist"
)

// face is what memberlist sees of a farm: who may be heard, who lives, and what words and
// certificates travel. It is called with memberlist's own lock held, and so calls nothing
// of it.
type face struct{ *Farm }

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

// NotifyJoin implements memberlist.EventDelegate.
func (f face) NotifyJoin(n *memberlist.Node) { f.NotifyUpdate(n) }

// NotifyUpdate implements memberlist.EventDelegate.
func (f face) NotifyUpdate(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == f.self.ID {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.roster.live(id, n.Address()) {
		delete(f.lost, n.Address())
		f.publish()
	}
}

// NotifyLeave implements memberlist.EventDelegate.
func (f face) NotifyLeave(n *memberlist.Node) {
	id, err := parseName(n.Name)
	if err != nil || id == f.self.ID {
		return
	}
	f.metrics.lost.Inc()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.roster.gone(id) {
		f.lose(Absence{id, n.Address(), f.cfg.Now(), n.State == memberlist.StateLeft})
		f.publish()
	}
}

// NodeMeta implements memberlist.Delegate.
func (f face) NodeMeta(int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []byte(f.word.raw)
}

// NotifyMsg implements memberlist.Delegate: what a member passes on.
func (f face) NotifyMsg(b []byte) { f.MergeRemoteState(b, false) }

// GetBroadcasts implements memberlist.Delegate.
func (f face) GetBroadcasts(overhead, limit int) [][]byte {
	return f.news.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (f face) LocalState(join bool) []byte {
	b, err := f.codec.Marshal(f.proofs(join))
	if err != nil { // texts can always be encoded
		f.cfg.Log.Error("gossip: the proofs of members can't be encoded", "err", err)
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate.
func (f face) MergeRemoteState(b []byte, _ bool) {
	var proofs []proof
	if err := f.codec.Unmarshal(b, &proofs); err != nil {
		f.refuse(err)
		return
	}
	f.believeAll(proofs)
}
