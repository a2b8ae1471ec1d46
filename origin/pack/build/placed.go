package build

import (
	"sync"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// placedMax is how many objects a Builder remembers to store each once: 128 GiB
// of dense content, about 80 MB. What repeats beyond that may be stored again.
const placedMax = 1 << 20

// placed remembers where a Builder put its objects. One goroutine adds, any may
// ask.
type placed struct {
	mu    sync.RWMutex // guards where
	where map[content.CID]pack.Place
}

func (p *placed) get(id content.CID) (pack.Place, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	at, ok := p.where[id]
	return at, ok
}

func (p *placed) put(id content.CID, at pack.Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.where) < placedMax {
		p.where[id] = at
	}
}
