package registers

import (
	"testing"
	"time"
)

// TestWhatNoDiskDoes has histories that none explains.
func TestWhatNoDiskDoes(t *testing.T) {
	a, b := make([]byte, Sector), make([]byte, Sector)
	Fill(a, 1)
	Fill(b, 2)
	torn := append(a[:8:8], b[8:]...)
	for what, reads := range map[string][][]byte{"the older one again": {b, a}, "what was never written": {make([]byte, Sector)}, "both in one sector": {torn}} {
		h := New()
		h.Wrote(0, h.Now(), 7, 1, 1)
		if what == "the older one again" {
			h.Wrote(1, h.Now(), 7, 1, 2)
		}
		var err error
		for _, p := range reads {
			call := h.Now()
			if err == nil {
				err = h.Read(2, call, h.Now(), 7, p)
			}
		}
		if err == nil {
			err = h.Check(time.Minute)
		}
		if err == nil {
			t.Errorf("%s is explained", what)
		}
	}
}
