package swarm

import (
	"crypto/hmac"
	"crypto/sha256"

	"github.com/grangemesh/grange/origin/content"
)

// Key is what a root is announced under.
type Key [32]byte

// KeyFor returns the key of a root. A public root's follows from it; others need the
// secret that members share, so that who carries the DHT learns nothing of it.
func KeyFor(scope content.Scope, root content.CID, secret [32]byte) Key {
	if scope.IsPublic() {
		return sha256.Sum256(append([]byte("grange root "), root[:]...))
	}
	mac := hmac.New(sha256.New, secret[:])
	mac.Write(root[:])
	return Key(mac.Sum(nil))
}
