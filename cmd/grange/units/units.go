// Package units reads and writes quantities as people do, on command lines and in tables.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/origin/content"
)

// sizeMax bounds what sizes may be given: caches are larger than the largest disk.
const sizeMax = 64 * content.SizeMax

// Size is a number of bytes, written as 10GiB, 10G, which is the same, or 500MB.
type Size int64

// UnmarshalText reads the text form.
func (s *Size) UnmarshalText(b []byte) error {
	text := string(b)
	if unit := strings.ToUpper(text[max(0, len(text)-1):]); unit != "" && strings.Contains("KMGTP", unit) {
		text += "iB" // as disks are made: 10G is 10GiB
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n > sizeMax {
		return fmt.Errorf("%q is not a size; write it as 10GiB or 500MB", b)
	}
	*s = Size(n)
	return nil
}

// Rate is a size a second, written as 50MiB/s; the "/s" may be left out.
type Rate int64

// UnmarshalText reads the text form.
func (r *Rate) UnmarshalText(b []byte) error {
	var s Size
	if err := s.UnmarshalText([]byte(strings.TrimSuffix(string(b), "/s"))); err != nil || s == 0 {
		return fmt.Errorf("%q is not a rate; write it as 50MiB/s", b)
	}
	*r = Rate(s)
	return nil
}

// Frequency is a number of requests a second, written as 100/s.
type Frequency float64

// UnmarshalText reads the text form.
func (f *Frequency) UnmarshalText(b []byte) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(string(b), "/s"), 64)
	if err != nil || !(n > 0) || math.IsInf(n, 1) { // NaN is not above zero
		return fmt.Errorf("%q is not a number of requests; write it as 100/s", b)
	}
	*f = Frequency(n)
	return nil
}

// Span is a time that passes, written as 30s, 24h or 7d.
type Span time.Duration

// Day is what a d stands for.
const Day = 24 * time.Hour

// UnmarshalText reads the text form.
func (s *Span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if days, ok := strings.CutSuffix(string(b), "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		d = time.Duration(n) * Day
		if n > int(math.MaxInt64/Day) {
			err = strconv.ErrRange
		}
	}
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a time; write it as 30s, 24h or 7d", b)
	}
	*s = Span(d)
	return nil
}

// Bytes is a number of bytes for people; a negative one is unknown.
func Bytes(n int64) string {
	if n < 0 {
		return "?"
	}
	return humanize.IBytes(uint64(n))
}
