package tally

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
)

// TestWhatIsCountedIsBounded: however many roots and members there are, none of the bytes is
// lost from the sum, and the latest members are known.
func TestWhatIsCountedIsBounded(t *testing.T) {
	tally := New()
	for i := range rootsMax + 100 {
		tally.Root(content.Sum(binary.BigEndian.AppendUint32(nil, uint32(i))))[FromOrigin].Add(2)
	}
	if sum := tally.Bytes().Origin; sum != 2*(rootsMax+100) {
		t.Errorf("the sum is %d", sum)
	}
	if n := len(tally.Roots()); n != rootsMax+1 {
		t.Errorf("%d roots", n)
	}
	for i := range 2 * peersMax {
		tally.Asked(peer.ID(fmt.Sprint(i)))
	}
	last := peer.ID(fmt.Sprint(2*peersMax - 1))
	tally.Failed(last, "busy")
	tally.Answered(last, time.Second)
	tally.Answered(last, 9*time.Second)
	if got, want := tally.Of(last), (Asked{1, 1, "busy", 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := tally.Of("0"); got != (Asked{}) {
		t.Errorf("the first is %+v still", got)
	}
}
