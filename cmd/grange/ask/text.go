package ask

import (
	"fmt"
	"maps"
	"slices"
	"strings"
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

// Span is a time of so many seconds, as people read it.
func Span(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Millisecond).String()
}

// Waits is how long was waited for what came from each source, those left out that nothing came from.
func Waits(bySource map[string]float64) string {
	var out []string
	for _, source := range slices.Sorted(maps.Keys(bySource)) {
		if seconds := bySource[source]; seconds > 0 {
			out = append(out, source+" "+Span(seconds))
		}
	}
	return strings.Join(out, ", ")
}

// Count is "1 chunk" or "2 chunks".
func Count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
