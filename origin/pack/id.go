package pack

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// ID names a pack: "<scope>/<hour>-<32 hex>", for example
// "mesh/2026112022-0f…". The hour (UTC) is when it was begun, so that a list of
// recent packs is short; the rest is random, so that writers never collide.
// The zero ID names no pack.
type ID string

const (
	keySuffix = ".pack"

	hourLayout = "2006010215"
	randomSize = 16

	// idTailSize is the length of "<hour>-<32 hex>".
	idTailSize = len(hourLayout) + 1 + 2*randomSize
	// IDSizeMax bounds an ID, in bytes: the longest scope is "farm/" and a name.
	IDSizeMax = len("farm/") + content.NameMax + 1 + idTailSize
)

// NewID returns a fresh ID of scope, with randomness from random.
func NewID(scope content.Scope, now time.Time, random io.Reader) (ID, error) {
	var b [randomSize]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("new pack ID: %w", err)
	}
	return ID(scope.String() + "/" + now.UTC().Format(hourLayout) + "-" + hex.EncodeToString(b[:])), nil
}

// ParseID checks the form of s; anything else is ErrInvalid.
func ParseID(s string) (ID, error) {
	invalid := func(why string) (ID, error) {
		return "", fmt.Errorf("pack ID %.200q: %w: %s", s, content.ErrInvalid, why)
	}
	slash := strings.LastIndexByte(s, '/')
	if slash < 0 || len(s)-slash-1 != idTailSize {
		return invalid("want SCOPE/HOUR-HEX")
	}
	if _, err := content.ParseScope(s[:slash]); err != nil {
		return "", fmt.Errorf("pack ID %.200q: %w", s, err)
	}
	hour, random := s[slash+1:slash+1+len(hourLayout)], s[len(s)-2*randomSize:]
	if t, err := time.Parse(hourLayout, hour); err != nil || t.Format(hourLayout) != hour {
		return invalid("want an hour as YYYYMMDDHH")
	}
	if s[len(s)-2*randomSize-1] != '-' || strings.Trim(random, "0123456789abcdef") != "" {
		return invalid("want 32 hex digits at the end")
	}
	return ID(s), nil
}

// ParseKey returns the ID of the pack stored under a bucket key.
func ParseKey(key string) (ID, error) { return CutKey(key, content.KeyPacks, keySuffix) }

// CutKey returns the ID in a bucket key of a space.
func CutKey(key string, space content.KeySpace, suffix string) (ID, error) {
	s, inSpace := strings.CutPrefix(key, string(space))
	s, hasSuffix := strings.CutSuffix(s, suffix)
	if !inSpace || !hasSuffix {
		return "", fmt.Errorf("key %.200q: %w: want %sID%s", key, content.ErrInvalid, space, suffix)
	}
	return ParseID(s)
}

// Key returns the bucket key of the pack.
func (id ID) Key() string { return string(content.KeyPacks) + string(id) + keySuffix }

// Scope returns the scope that the pack lies in, or the zero Scope when id is
// not valid.
func (id ID) Scope() content.Scope {
	slash := strings.LastIndexByte(string(id), '/')
	if slash < 0 {
		return content.Scope{}
	}
	scope, err := content.ParseScope(string(id[:slash]))
	if err != nil {
		return content.Scope{}
	}
	return scope
}

// Age returns the part of a valid id that is the greater the later it was begun.
func (id ID) Age() string { return string(id[len(id)-idTailSize:]) }

// hourPrefix returns the key prefix that id shares with the packs of its scope
// and hour.
func (id ID) hourPrefix() string {
	return string(content.KeyPacks) + string(id[:len(id)-2*randomSize])
}
