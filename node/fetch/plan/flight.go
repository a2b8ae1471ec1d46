package plan

import "time"

// Object is one thing that is on its way to this member, or about to be: its flights,
// and whether the origin is being read for it. Flights of one object at different depths
// are apart, so that nodes never wait for each other; see Depth. The zero value is ready.
type Object struct {
	flights [Depths]*Flight
	Reading bool
}

// Idle reports whether nothing of it is under way: it may be forgotten.
func (o *Object) Idle() bool { return o.flights == [Depths]*Flight{} && !o.Reading }

// Flights yields those under way, also those that a more urgent one hides.
func (o *Object) Flights(yield func(*Flight) bool) {
	for _, fl := range o.flights {
		for ; fl != nil; fl = fl.hides {
			if !yield(fl) {
				return
			}
		}
	}
}

// Flight is one object on its way for those who wait for it.
type Flight struct {
	// Of is what the caller knows it by.
	Of      any
	obj     *Object
	hides   *Flight // one of the same depth that was too slow for who wanted this one
	job     *Job
	index   uint64
	size    int
	waiters int
	ended   bool
}

// End ends a flight; false when it had. last is true when its job lacks nothing more. It
// is joined until it is left out.
func (fl *Flight) End() (last, ok bool) {
	if fl.ended {
		return false, false
	}
	fl.ended = true
	fl.job.left--
	return fl.job.left == 0, true
}

// LeaveOut has nobody join it any more.
func (fl *Flight) LeaveOut() {
	for at := &fl.obj.flights[fl.job.cfg.Depth]; *at != nil; at = &(*at).hides {
		if *at == fl {
			*at = fl.hides
			return
		}
	}
}

// Wanted is an object that a request is for: its index in the root, and what it takes
// at the origin.
type Wanted struct {
	*Object
	Index uint64
	Size  int
}

// Join has a request wait for objects of one run: for flights under way that are as deep
// or deeper, and as urgent where somebody is in a hurry; or for new ones, of a job that
// is returned to be begun. Each flight is to be waited for or left. What this node wants
// itself where it leads is what others ask it for.
func (m *Member) Join(cfg Config, objects []Wanted) (flights []*Flight, begun *Job) {
	if cfg.Depth == Own && m.Leads(cfg.Key) {
		cfg.Depth = Led
	}
	flights = make([]*Flight, len(objects))
	for i, o := range objects {
		fl := o.joinable(cfg)
		if fl == nil {
			if begun == nil {
				begun = m.job(cfg)
			}
			fl = &Flight{obj: o.Object, hides: o.flights[cfg.Depth], job: begun, index: o.Index, size: o.Size}
			o.flights[cfg.Depth] = fl
			begun.flights = append(begun.flights, fl)
			begun.left++
		}
		fl.waiters++
		flights[i] = fl
	}
	return flights, begun
}

// joinable returns a flight that a request may join: one that has landed, or is as deep
// or deeper and may read the origin where the request may, and where somebody is in a hurry
// as urgent, or asked for ahead and coming.
func (o *Object) joinable(cfg Config) *Flight {
	for d, fl := range o.flights {
		if fl == nil || !fl.ended && (Depth(d) < cfg.Depth || fl.job.cfg.NoOrigin && !cfg.NoOrigin) {
			continue
		}
		if fl.ended || !cfg.Hurry || (fl.job.cfg.Hurry || fl.job.cfg.Ahead) && !fl.job.Slow {
			return fl
		}
	}
	return nil
}

// Leave gives up waiting for flights, and returns the jobs that are to end: those that
// nobody waits for, unless somebody in a hurry wanted them, who asks again.
func (m *Member) Leave(flights ...*Flight) (unwanted []*Job) {
	for _, fl := range flights {
		fl.waiters--
	}
	for _, fl := range flights {
		j := fl.job
		if fl.ended || j.cfg.Hurry || j.unwanted || j.waited() {
			continue
		}
		j.unwanted = true
		j.end()
		for _, other := range j.flights {
			other.LeaveOut()
		}
		unwanted = append(unwanted, j)
	}
	return unwanted
}

func (j *Job) waited() bool {
	for _, fl := range j.flights {
		if fl.waiters > 0 && !fl.ended {
			return true
		}
	}
	return false
}

// reads reports whether the origin is being read for something that is missing.
func (j *Job) readsElsewhere() bool {
	for _, fl := range j.flights {
		if !fl.ended && fl.obj.Reading {
			return true
		}
	}
	return false
}

// need is how many bytes are missing, as the origin has them.
func (j *Job) need() (n int64) {
	for _, fl := range j.flights {
		if !fl.ended {
			n += int64(fl.size)
		}
	}
	return n
}

// ReadingWait is how long a job waits for reads that others have begun before it climbs
// the ladder itself.
func (j *Job) ReadingWait() time.Duration { return j.patience.pass }
