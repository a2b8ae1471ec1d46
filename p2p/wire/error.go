package wire

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/grangemesh/grange/origin/content"
)

// Kind is the category of an Error frame.
type Kind uint8

// The kinds. Those up to KindClosed are the sentinels of package content.
const (
	KindOther Kind = iota
	KindNotFound
	KindExists
	KindConflict
	KindFenced
	KindCorrupt
	KindUnavailable
	KindForbidden
	KindInvalid
	KindReadOnly
	KindNoSpace
	KindClosed
	// KindBusy: the asker's budget at the sender is used up.
	KindBusy
	// KindCanceled ends a request that the asker canceled.
	KindCanceled

	kindEnd
)

// Error ends a request that failed.
type Error struct {
	Kind Kind
	Text string
}

func (m Error) encode(b []byte) ([]byte, Type, uint8) {
	return append(append(b, byte(m.Kind)), m.Text...), TypeError, 0
}

func decodeError(p []byte) (Message, error) {
	if p[0] >= byte(kindEnd) || !utf8.Valid(p[1:]) {
		return nil, fmt.Errorf("%w: kind %d, text %.40q", content.ErrCorrupt, p[0], p[1:])
	}
	return Error{Kind(p[0]), string(p[1:])}, nil
}

// Sentinel returns the error of package content that the kind stands for, nil if none.
func (k Kind) Sentinel() error {
	return [kindEnd]error{
		KindNotFound: content.ErrNotFound, KindExists: content.ErrExists, KindConflict: content.ErrConflict, KindFenced: content.ErrFenced,
		KindCorrupt: content.ErrCorrupt, KindUnavailable: content.ErrUnavailable, KindForbidden: content.ErrForbidden, KindInvalid: content.ErrInvalid,
		KindReadOnly: content.ErrReadOnly, KindNoSpace: content.ErrNoSpace, KindClosed: content.ErrClosed, KindBusy: content.ErrUnavailable,
	}[k]
}

// ErrorOf returns the frame that tells a peer of err, cut at TextMax and in UTF-8 only.
func ErrorOf(err error) Error {
	text := err.Error()
	m := Error{Text: strings.ToValidUTF8(text[:min(len(text), TextMax)], "")}
	for k := KindNotFound; k <= KindClosed; k++ {
		if errors.Is(err, k.Sentinel()) {
			m.Kind = k
			break
		}
	}
	return m
}
