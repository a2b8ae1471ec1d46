package object

import "github.com/grangemesh/grange/origin/pack"

// Part is what is wanted of one run.
type Part struct {
	Stored  int // bytes at the origin
	Objects []Object
	// Also are objects of the same pack that are wanted with it: where nobody else is to read them, one request brings all.
	Also []Object
}

// Parts are those of several runs, in the order of what was added first of each. The zero value has none.
type Parts struct {
	All   []Part
	place map[pack.Run]int
}

// Add puts an object into the part of its run.
func (p *Parts) Add(o Object) {
	i, ok := p.place[o.At.Run()]
	if !ok {
		if i = len(p.All); i == 0 {
			p.place = map[pack.Run]int{}
		}
		p.place[o.At.Run()], p.All = i, append(p.All, Part{})
	}
	p.All[i].Objects = append(p.All[i].Objects, o)
	p.All[i].Stored += o.Stored()
}
