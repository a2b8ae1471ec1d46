package holders

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	noteName  = "promise"
	noteMagic = "GRHOLD\x00\x02"
	noteHead  = 98
)

// note is what a holder has said about a volume, and keeps to.
type note struct {
	claim     wire.Claim
	base      content.Position
	writer    trust.PublicKey
	whole     uint64 // see wire.Promise
	name      string
	ancestors []content.VolumeID
}

func (n note) encode() []byte {
	b := append(append(make([]byte, 0, noteHead), noteMagic...), n.claim.Volume[:]...)
	for _, x := range [...]uint64{n.claim.Epoch, n.claim.Incarnation, n.base.Number, n.base.Seq} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	b = binary.LittleEndian.AppendUint64(append(b, n.writer[:]...), n.whole)
	b = append(b, byte(len(n.name)), byte(len(n.ancestors)))
	b = append(b, n.name...)
	for _, id := range n.ancestors {
		b = append(b, id[:]...)
	}
	return journal.Summed(0, b)
}

// decodeNote reads a note; anything else is ErrCorrupt.
func decodeNote(b []byte) (n note, err error) {
	end := len(b) - 4
	if end < noteHead || !journal.Whole(0, b, noteMagic) ||
		end != noteHead+int(b[96])+16*int(b[97]) || int(b[96]) > content.NameMax || int(b[97]) > wire.AncestorsMax {
		return note{}, fmt.Errorf("%w: %d bytes, not what a holder has promised", content.ErrCorrupt, len(b))
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }
	n.claim = wire.Claim{Volume: content.VolumeID(b[8:24]), Epoch: at(24), Incarnation: at(32)}
	n.base, n.writer, n.whole = content.Position{Number: at(40), Seq: at(48)}, trust.PublicKey(b[56:88]), at(88)
	rest := b[noteHead:end]
	n.name = string(rest[:b[96]])
	for rest = rest[b[96]:]; len(rest) > 0; rest = rest[16:] {
		n.ancestors = append(n.ancestors, content.VolumeID(rest[:16]))
	}
	return n, nil
}
