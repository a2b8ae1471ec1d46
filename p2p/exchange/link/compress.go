package link

const (
	// compressBelow is the rate of a link, in bytes a second, under which bodies
	// are compressed for it: a core compresses several times that, so it never
	// holds the link up, and the gigabit links of a farm stay as they are.
	compressBelow = 64 << 20
	// compressMin is the length, in bytes, under which it isn't worth the trouble.
	compressMin = 4 << 10
	// plainAfter is how many bodies go as they are after one that did not shrink
	// by an eighth: its neighbours are mostly of the same kind.
	plainAfter = 15
)

// MayCompress reports whether the next body for the link should be tried.
func (l *Link) MayCompress(size int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rate, ok := l.window.measured()
	if !ok || rate >= compressBelow || size < compressMin {
		return false
	}
	if l.plain > 0 {
		l.plain--
		return false
	}
	return true
}

// Incompressible notes that a body did not shrink.
func (l *Link) Incompressible() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plain = plainAfter
}
