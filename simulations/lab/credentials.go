package lab

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Credentials are what who gets hold of a member's folder reads there.
type Credentials struct {
	Magic     string          `cbor:"magic"`
	Mesh      trust.PublicKey `cbor:"mesh"`
	Chain     trust.Chain     `cbor:"chain"`
	Secrets   trust.Secrets   `cbor:"secrets"`
	Origin    string          `cbor:"origin"`
	Bootstrap []string        `cbor:"bootstrap"`
}

// Credentials reads those of the node, and returns what signs as the node does.
func (n *Node) Credentials() (s trust.Signer, c Credentials, err error) {
	s.Key, err = trust.LoadKey(filepath.Join(n.Data, "identity.key"))
	b, failed := os.ReadFile(filepath.Join(n.Data, "membership"))
	if err = errors.Join(err, failed); err == nil {
		err = content.NewCodec().Unmarshal(b, &c)
	}
	s.Chain = c.Chain
	return s, c, err
}
