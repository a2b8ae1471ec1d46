package records

// recent keeps about the last so many values that were set or wanted. Those before go
// half of them at once, which costs no book-keeping at each use.
type recent[V any] struct {
	young, old map[string]V
	max        int
}

func newRecent[V any](size int) *recent[V] { return &recent[V]{young: map[string]V{}, max: size} }

// peek returns a value without counting it as wanted.
func (r *recent[V]) peek(id string) (V, bool) {
	v, ok := r.young[id]
	if !ok {
		v, ok = r.old[id]
	}
	return v, ok
}

func (r *recent[V]) get(id string) (V, bool) {
	v, ok := r.young[id]
	if !ok {
		if v, ok = r.old[id]; ok {
			r.set(id, v)
		}
	}
	return v, ok
}

func (r *recent[V]) set(id string, v V) {
	if _, ok := r.young[id]; !ok && len(r.young) >= r.max/2 {
		r.young, r.old = make(map[string]V, r.max/2), r.young
	}
	delete(r.old, id)
	r.young[id] = v
}

func (r *recent[V]) drop(id string) {
	delete(r.young, id)
	delete(r.old, id)
}
