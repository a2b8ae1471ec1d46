package terms

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/origin/catalog"
)

// Loss is what would be lost of a volume with the node that has it, host and disk, if that were lost now.
type Loss struct {
	// Text says it to people.
	Text string
	// Here says that it is something, and that this node has it, and Bytes how much, about; 0 where that is not known.
	Here  bool
	Bytes int64
}

// LossOf says what a volume's durability promises now, to the node of that ID. It is as the table of the README has it.
func LossOf(v View, self string) Loss {
	since := "since it was made"
	if !v.FoldedAt.IsZero() {
		since = "since " + v.FoldedAt.UTC().Format(time.RFC3339)
	}
	k, err := catalog.PolicyHolders(v.Durability)
	held := k > 0 && v.Degraded.IsZero() && !v.Short
	unseen := v.State == StateDetached || v.State == StateFailed || v.State == StateOpening // what it has is not looked at
	written := humanize.IBytes(uint64(max(0, v.Lag)))
	switch {
	case v.State == StateUncommitted:
		return Loss{"all of it: the origin does not know it yet", true, max(v.Lag, v.DirtyBytes)}
	case v.State == StateReading:
		return Loss{Text: "nothing: it is a copy, and its writer has more"}
	case v.State == StateReleased || v.Node == "":
		return Loss{Text: "nothing: the bucket has all of it"}
	case err != nil: // a folder that can't be read
		return Loss{"not known: " + v.Detail, v.Node == self, 0}
	case v.Node != self && held:
		return Loss{Text: "nothing that was flushed: members of its farm have it"}
	case v.Durability == catalog.PolicyOrigin && (v.Node != self || v.Lag > 0 || unseen):
		return Loss{Text: "nothing that was flushed: the bucket has it"}
	case v.Node != self:
		return Loss{Text: "what was written there " + since}
	case unseen && !held:
		return Loss{"what was written " + since + ", as far as the bucket has not got it", true, 0}
	case v.Lag <= 0 && !unseen:
		return Loss{Text: "nothing: the bucket has all that was written"}
	case held:
		return Loss{Text: fmt.Sprintf("nothing that was flushed: %s have it", strings.Join(v.HolderNames, ", "))}
	case k > 0:
		return Loss{fmt.Sprintf("up to %s, written %s: too few members hold it", written, since), true, v.Lag}
	}
	return Loss{fmt.Sprintf("%s, written %s", written, since), true, v.Lag}
}
