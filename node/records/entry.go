package records

import (
	"fmt"
	"time"
)

// ownedFor is how long after it was last seen at the origin a live record of a farm
// keeps the name from records that other farms signed. It is refused to whoever writes
// over it there; but the farm may have deleted it unseen by this node, and must not be
// in the way for ever then.
const ownedFor = 7 * 24 * time.Hour

// entry is what is known of one name. Its records are never changed in place.
type entry struct {
	// said is what the origin said to this node, or nil.
	said *Known
	// heard is what members say that is newer, or nil.
	heard *Known
	// taken is what was at the origin and is not, without having been deleted; or nil.
	taken *Known
	// partial tells that more of it is on disk, which is believed no more.
	partial bool
	// checked is when the name was last looked for.
	checked time.Time
}

func (e entry) isEmpty() bool { return e.said == nil && e.heard == nil }

func (e entry) isVoid() bool { return e.isEmpty() && e.taken == nil }

// answer is what counts; e is not empty.
func (e entry) answer() Known {
	if e.heard != nil {
		return *e.heard
	}
	return *e.said
}

// owns reports whether a record keeps the name from another one.
func (k *Known) owns(next Known, now time.Time) bool {
	return k != nil && !k.OpenTo(next.Envelope) && now.Sub(k.SeenAt) < ownedFor
}

// told takes what the origin answered now to a read that began at asked. It goes before
// whatever was heard, also before a larger version. Against what the origin said
// itself an older version is a read that was overtaken, or a bucket that was rolled
// back, and a record of another farm is none that it could have taken.
func (e entry) told(k Known, asked, now time.Time) entry {
	old := e.said
	k.Confirmed, k.read, k.SeenAt, k.first = true, now, now, k.FirstSeen()
	for _, same := range []*Known{e.said, e.heard} {
		if same != nil && same.Commit == k.Commit {
			k.first, k.unproved = earlier(k.first, same.first), same.unproved
		}
	}
	e.checked = now
	switch {
	case old.owns(k, now):
		return e.doubting(fmt.Sprintf("the origin shows version %d, signed by farm %q, and the name is of farm %q, at version %d: was the bucket written to by others?", k.Version, k.Signer.Farm, old.Farm, old.Version))
	case old != nil && old.Version > k.Version && !old.read.Before(asked):
		return e
	case old != nil && old.Version > k.Version:
		return e.doubting(fmt.Sprintf("the origin shows version %d, and version %d was seen there before: was it rolled back?", k.Version, old.Version))
	}
	e.said = &k
	if e.heard != nil && (e.heard.against != k.Commit || e.heard.Version <= k.Version) {
		e.heard = nil
	}
	return e
}

// doubting keeps what the origin said before.
func (e entry) doubting(why string) entry {
	k := *e.said
	k.Confirmed, k.Doubt = false, why
	e.said = &k
	return e
}

// hears takes what members say now. It never moves what the origin said: the same
// record is younger by it, a newer one stands beside it, and what is older or another
// farm's is no news.
func (e entry) hears(k Known, now time.Time) entry {
	switch {
	case e.said != nil && e.said.Commit == k.Commit:
		said := *e.said
		said.SeenAt, said.Confirmed = later(said.SeenAt, k.SeenAt), said.Confirmed || k.Confirmed && said.Doubt == ""
		e.said = &said
		return e
	case e.said.owns(k, now), e.said != nil && k.Version <= e.said.Version:
		return e
	case e.heard == nil:
	case e.heard.Commit == k.Commit:
		k.first, k.SeenAt, k.over = earlier(e.heard.first, k.first), later(e.heard.SeenAt, k.SeenAt), e.heard.over
		k.agreed = later(e.heard.agreed, k.agreed) // whoever alone sees it still makes it younger, and no more
		k.Confirmed = e.heard.Confirmed && now.Sub(k.agreed) <= sightFor || k.Confirmed
	case e.heard.Confirmed && !k.Confirmed, e.heard.Confirmed == k.Confirmed && k.Version <= e.heard.Version:
		return e
	}
	e.heard = &k
	return e
}

// handed notes a record of this node's own, which a member says it has written: it is
// the answer from now on, as far as nobody knows better.
func (e entry) handed(k Known, now time.Time) entry {
	e.checked = now
	if e.said == nil || e.said.Version < k.Version {
		e.heard = &k
	}
	return e
}

// unanswered notes that the origin was asked in vain: what it said before is confirmed
// no more, unless it was just now, or members confirm it anew.
func (e entry) unanswered(now time.Time) entry {
	e.checked = now
	if e.said != nil {
		k := *e.said
		k.Confirmed = k.Doubt == "" && now.Sub(k.read) <= freshFor
		e.said = &k
	}
	if e.heard != nil {
		k := *e.heard
		k.Confirmed = k.Confirmed && now.Sub(k.agreed) <= sightFor
		e.heard = &k
	}
	return e
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
