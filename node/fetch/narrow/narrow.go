// Package narrow takes back what a root that has ended gave its objects.
package narrow

import (
	"errors"
	"iter"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
)

// batchMax bounds the objects whose reach is weighed at once, to some megabytes.
const batchMax = 1 << 16

// Map yields what the map of a root names, node by node, or why one can't be had.
type Map = iter.Seq2[[]content.CID, error]

// To has the objects of a map go only as far as the widest of others, the maps of the roots
// of a reach, that names them too, and nowhere when none does. whole is false where part of
// the map can't be had: what is below may go as far as before.
func To(c *cache.Cache, ended Map, others func(cache.Reach) iter.Seq[Map]) (whole bool, err error) {
	batch := map[content.CID]bool{}
	whole = true
	for names, missing := range ended {
		if missing != nil {
			whole = false
			continue
		}
		for _, id := range names {
			if reach, ok := c.Reach(id); ok && reach > cache.ReachNone {
				batch[id] = true
			}
		}
		if len(batch) >= batchMax {
			err = errors.Join(err, narrow(c, batch, others))
			clear(batch)
		}
	}
	return whole, errors.Join(err, narrow(c, batch, others))
}

// narrow empties the batch of those that another root names.
func narrow(c *cache.Cache, batch map[content.CID]bool, others func(cache.Reach) iter.Seq[Map]) (err error) {
	for reach := cache.ReachPublic; reach > cache.ReachNone && len(batch) > 0; reach-- {
		for other := range others(reach) {
			for names := range other {
				for _, id := range names {
					delete(batch, id)
				}
				if len(batch) == 0 {
					break
				}
			}
		}
		err = errors.Join(err, c.Narrow(slices.Collect(maps.Keys(batch)), reach-1))
	}
	return err
}
