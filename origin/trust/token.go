package trust

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Token is what a newcomer needs to join: where the mesh is, how to know it, and the
// invite that an admin redeems into a certificate and secrets. In text it is "grange1"
// and base64url; a secret until it was used, it tells nothing but addresses after.
type Token struct {
	Mesh PublicKey `cbor:"mesh"`
	// Origin is the URL of the origin, without credentials.
	Origin string `cbor:"origin"`
	// Bootstrap are full multiaddrs of members, those that can redeem first.
	Bootstrap []string `cbor:"bootstrap"`
	Invite    Invite   `cbor:"invite"`
	Role      Role     `cbor:"role"`
	Farm      string   `cbor:"farm"`
	// Expires is in Unix seconds.
	Expires int64 `cbor:"expires"`
}

const (
	tokenPrefix = "grange1"
	// tokenSizeMax bounds the text, so that a wrong paste is not decoded.
	tokenSizeMax = 16 << 10
	// tokenCheckSize bytes of hash at the end tell damage from another version.
	tokenCheckSize = 4
)

// String returns the text form.
func (t Token) String() string {
	b, err := content.NewCodec().Marshal(t)
	if err != nil { // every field can always be encoded
		panic(fmt.Sprintf("trust: encode token: %v", err))
	}
	sum := content.Sum(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenCheckSize]...))
}

// ParseToken reads the text form; any other is ErrInvalid, an expired one ErrForbidden.
func ParseToken(s string, now time.Time) (Token, error) {
	s = strings.TrimSpace(s)
	text, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > tokenSizeMax {
		return Token{}, fmt.Errorf("join token: %w: it should begin with %q; make one with `grange token create`", content.ErrInvalid, tokenPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	end := max(0, len(b)-tokenCheckSize)
	sum := content.Sum(b[:end])
	if err != nil || end == 0 || string(b[end:]) != string(sum[:tokenCheckSize]) {
		return Token{}, fmt.Errorf("join token: %w: damaged or cut short; copy it whole", content.ErrInvalid)
	}
	var t Token
	if err := content.NewCodec().Unmarshal(b[:end], &t); err != nil {
		return Token{}, fmt.Errorf("join token: %w: %w", content.ErrInvalid, err)
	}
	if _, err := ParseRole(string(t.Role)); err != nil {
		return Token{}, fmt.Errorf("join token: %w", err)
	}
	if expires := time.Unix(t.Expires, 0); now.After(expires) {
		return Token{}, fmt.Errorf("join token: %w: it expired on %s, and by the clock here it is %s; ask an admin for a new one", content.ErrForbidden,
			expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return t, nil
}
