package garbage

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// packsMax bounds the packs of an origin that are collected: 256 TiB of them, in 300 MiB of memory.
const packsMax = 8 << 20

// row is one pack in 36 bytes, without pointers: a million take 36 MB.
type row struct {
	random [16]byte
	hour   uint32 // as YYYYMMDDHH
	size   uint32
	live   uint32 // bytes that roots need of it, at most: several may need the same
	most   uint32 // bytes that one of them needs
	scope  uint16
	state  rowState
}

// rowState is what is known of a pack.
type rowState uint8

const (
	isLive       rowState = 1 << iota // a record names it
	isHeld                            // a record that can't be read may name it
	isTombstoned                      // a batch has it
	isStub                            // its frames are elsewhere
	isGone                            // this run has deleted it
	isShared                          // several roots need it, perhaps the same of it
	isYoung                           // it was begun just now, by its name
	isSuspect                         // somebody has found damage in it: what lives of it, and is right, goes elsewhere
)

func (s rowState) is(any rowState) bool { return s&any != 0 }

// table is all packs of an origin, in the order of a list of their keys.
type table struct {
	scopes []string // rising
	rows   []row
}

// parts cuts an ID, which is valid.
func parts(id pack.ID) (scope string, r row) {
	scope, tail := string(id[:strings.LastIndexByte(string(id), '/')]), id.Age()
	hour, random, _ := strings.Cut(tail, "-")
	n, _ := strconv.ParseUint(hour, 10, 32)
	r.hour = uint32(n)
	_, _ = hex.Decode(r.random[:], []byte(random))
	return scope, r
}

// add appends a pack; they come in the order of their keys.
func (t *table) add(id pack.ID, size int64, state rowState) error {
	if len(t.rows) == packsMax {
		return fmt.Errorf("%w: there are more than %d packs, as many as a collection knows", content.ErrInvalid, packsMax)
	}
	scope, r := parts(id)
	if n := len(t.scopes); n == 0 || t.scopes[n-1] != scope {
		t.scopes = append(t.scopes, scope)
	}
	r.scope, r.size, r.state = uint16(len(t.scopes)-1), uint32(size), state
	if size == pack.SizeMin {
		r.state |= isStub
	}
	if n := len(t.rows); n > 0 && compareRows(t.rows[n-1], r) >= 0 {
		return fmt.Errorf("%w: the store lists pack %s out of order", content.ErrCorrupt, id)
	}
	t.rows = append(t.rows, r)
	return nil
}

func compareRows(a, b row) int {
	return cmp.Or(cmp.Compare(a.scope, b.scope), cmp.Compare(a.hour, b.hour), bytes.Compare(a.random[:], b.random[:]))
}

// find returns the row of a pack; nil for none.
func (t *table) find(id pack.ID) *row {
	scope, r := parts(id)
	n := slices.Index(t.scopes, scope)
	if n < 0 {
		return nil
	}
	r.scope = uint16(n)
	i, ok := slices.BinarySearchFunc(t.rows, r, compareRows)
	if !ok {
		return nil
	}
	return &t.rows[i]
}

// id is that of a row.
func (t *table) id(r *row) pack.ID {
	return pack.ID(fmt.Sprintf("%s/%010d-%x", t.scopes[r.scope], r.hour, r.random))
}

// scopeOf is that of a row.
func (t *table) scopeOf(r *row) content.Scope {
	s, _ := content.ParseScope(t.scopes[r.scope]) // it was cut from a valid ID
	return s
}
