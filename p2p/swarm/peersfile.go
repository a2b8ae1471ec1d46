package swarm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
)

// The file of peers lets a member back into the mesh when its bootstrap addresses
// are gone. It is text in UTF-8: a line of magic and version, then one full
// multiaddr a line, each ended by a newline:
//
//	grange peers 1
//	/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…
const (
	peersMagic = "grange peers 1\n"
	// keptMax bounds the members kept, keptAddrsMax the addresses of each, and
	// peersFileMax the file, by what as many longest lines would take.
	keptMax      = 32
	keptAddrsMax = 4
	addrMax      = 256
	peersFileMax = len(peersMagic) + keptMax*keptAddrsMax*(addrMax+1)
)

// encodePeers leaves out what is beyond the limits.
func encodePeers(peers []peer.AddrInfo) []byte {
	out := []byte(peersMagic)
	for _, p := range peers[:min(len(peers), keptMax)] {
		full, err := peer.AddrInfoToP2pAddrs(&p)
		if err != nil {
			continue
		}
		for _, a := range full[:min(len(full), keptAddrsMax)] {
			if text := a.String(); len(text) <= addrMax {
				out = append(append(out, text...), '\n')
			}
		}
	}
	return out
}

// decodePeers reads what encodePeers wrote; anything else is content.ErrCorrupt.
func decodePeers(b []byte) ([]peer.AddrInfo, error) {
	text, ok := strings.CutPrefix(string(b), peersMagic)
	if !ok || len(b) > peersFileMax || text != "" && !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("peers file: %w", content.ErrCorrupt)
	}
	var out []peer.AddrInfo
	for line := range strings.Lines(text) {
		info, err := ParseAddr(strings.TrimSuffix(line, "\n"))
		if err == nil && len(line) > addrMax+1 {
			err = fmt.Errorf("address of %d bytes; the limit is %d", len(line)-1, addrMax)
		}
		if err != nil {
			return nil, fmt.Errorf("peers file: %w: %w", content.ErrCorrupt, err)
		}
		out = AddPeer(out, info)
	}
	if len(out) > keptMax {
		return nil, fmt.Errorf("peers file: %w: %d peers", content.ErrCorrupt, len(out))
	}
	return out, nil
}

// AddPeer appends a peer, or its addresses to those of the same peer.
func AddPeer(peers []peer.AddrInfo, p peer.AddrInfo) []peer.AddrInfo {
	i := slices.IndexFunc(peers, func(q peer.AddrInfo) bool { return q.ID == p.ID })
	if i < 0 {
		return append(peers, p)
	}
	peers[i].Addrs = append(peers[i].Addrs, p.Addrs...)
	return peers
}

// loadPeers reads the file; an absent one holds nobody.
func loadPeers(path string) ([]peer.AddrInfo, error) {
	b, err := os.ReadFile(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodePeers(b)
}
