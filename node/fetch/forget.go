package fetch

import (
	"context"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
)

// narrowMax bounds the objects whose reach is weighed at once, to some megabytes.
const narrowMax = 1 << 16

// Forget ends what this node knows of a root under a scope. It is called when no
// record that the caller knows names the root with that scope any more: the last was
// deleted, or has another version. What replaces it is learned before.
//
// From its return on the root is not served, shown or announced; who has it open
// reads on, for this node and its farm. Then, while the Fetcher runs, what its map
// names goes only as far as the widest root that was learned and names it too, and
// nowhere when none does, as far as the maps of those are here. After a root of a
// farm's scope nothing is narrowed: its members might read it and still may. A process
// that is killed meanwhile leaves the rest as it was.
func (f *Fetcher) Forget(root content.CID, scope content.Scope) {
	f.mu.Lock()
	ended := f.roots.End(root, scope)
	f.mu.Unlock()
	for _, rs := range ended {
		wide := rs.reach() > cache.ReachFarm
		rs.limit.Store(uint32(f.unlisted(scope)))
		rs.here.Tell() // who follows it hears that it has ended
		if wide {
			f.start(func() { f.narrow(rs) })
		}
	}
	f.announceSoon()
}

// narrow takes back what a root that has ended gave its objects. When the Fetcher
// stops it gets done at once, without looking who else names them.
func (f *Fetcher) narrow(rs *rootState) {
	f.narrowing.Lock() // one at a time: what they look through is the same
	defer f.narrowing.Unlock()
	batch := map[content.CID]bool{}
	whole := true
	how := byPrefetch()
	how.passing = true
	f.walk(context.WithoutCancel(f.ctx), rs, how, func(p content.Pos, n *mapNode, err error) bool {
		if err != nil {
			whole = false
			return true
		}
		for _, id := range n.names(p) {
			if reach, ok := f.cfg.Cache.Reach(id); ok && reach > cache.ReachNone {
				batch[id] = true
			}
		}
		if len(batch) >= narrowMax {
			f.narrowTo(rs, batch)
			clear(batch)
		}
		return true
	})
	f.narrowTo(rs, batch)
	if !whole {
		f.cfg.Log.Warn("part of the map of a root that has ended can't be had; chunks below it that are here may go as far as before", "root", rs.id)
	}
}

// narrowTo has objects go as far as the widest learned root that names them, and
// empties the batch of those that one does.
func (f *Fetcher) narrowTo(ended *rootState, batch map[content.CID]bool) {
	for reach := cache.ReachPublic; reach > cache.ReachNone && len(batch) > 0; reach-- {
		for _, rs := range f.all() {
			if rs.introducer != "" || rs.reach() != reach {
				continue
			}
			how := byWalk(cache.ReachNone)
			if slices.Contains(rs.lineage, ended.id) { // what came after it shares most
				how = request{priority: byPrefetch().priority, passing: true}
			}
			f.walk(f.ctx, rs, how, func(p content.Pos, n *mapNode, err error) bool {
				if err == nil {
					for _, id := range n.names(p) {
						delete(batch, id)
					}
				}
				return len(batch) > 0
			})
		}
		if err := f.cfg.Cache.Narrow(slices.Collect(maps.Keys(batch)), reach-1); err != nil {
			f.cfg.Log.Warn("a root that has ended is not forgotten in full", "root", ended.id, "err", err)
		}
	}
}
