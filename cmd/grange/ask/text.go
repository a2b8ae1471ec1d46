package ask

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node/api"
)

// Prefixed is a text behind a prefix, and nothing without the text.
func Prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

// Moment is a time for a list, without its date where that is plain.
func Moment(t time.Time) string {
	if time.Since(t).Abs() < 12*time.Hour {
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format(time.DateTime)
}

// Sources says where bytes came from.
func Sources(b api.Bytes) string {
	return fmt.Sprintf("cache %s, farm %s, swarm %s, origin %s", units.Bytes(b.Cache), units.Bytes(b.Farm), units.Bytes(b.Swarm), units.Bytes(b.Origin))
}

// Count is "1 chunk" or "2 chunks".
func Count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
