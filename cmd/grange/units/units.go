// Package units reads and writes quantities as people do, on command lines and in tables.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/origin/content"
)

// sizeMax bounds what sizes may be given: caches are larger than the largest disk.
const sizeMax = 64 * content.SizeMax

// Size is a number of bytes, not 0, written as 10GiB, 10G, which is the same, or 500MB.
type Size int64

// UnmarshalText reads the text form.
func (s *Size) UnmarshalText(b []byte) error {
	text := string(b)
	if unit := strings.ToUpper(text[max(0, len(text)-1):]); unit != "" && strings.Contains("KMGTP", unit) {
		text += "iB" // as disks are made: 10G is 10GiB
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > sizeMax {
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
	if err := s.UnmarshalText([]byte(strings.TrimSuffix(string(b), "/s"))); err != nil {
		return fmt.Errorf("%q is not a rate; write it as 50MiB/s", b)
	}
	*r = Rate(s)
	return nil
}

// Window is a time of the week, and maybe a rate in it: "22:00-06:00", "sat 10:00-14:00",
// "mon-fri 22:00-06:00 2MiB/s".
type Window seed.Window

// UnmarshalText reads the text form.
func (w *Window) UnmarshalText(b []byte) error {
	*w = Window{Days: [7]bool{true, true, true, true, true, true, true}}
	words := strings.Fields(string(b))
	wrong := fmt.Errorf("%q is not a time of the week; write it as 22:00-06:00, or mon-fri 22:00-06:00 2MiB/s", b)
	if len(words) > 1 && !strings.Contains(words[0], ":") {
		first, last, several := strings.Cut(words[0], "-")
		if !several {
			last = first
		}
		from, ok := weekday(first)
		to, also := weekday(last)
		if !ok || !also {
			return wrong
		}
		w.Days = [7]bool{}
		for day := from; ; day = (day + 1) % 7 {
			if w.Days[day] = true; day == to {
				break
			}
		}
		words = words[1:]
	}
	if len(words) == 0 || len(words) > 2 {
		return wrong
	}
	first, last, _ := strings.Cut(words[0], "-")
	var ok, also bool
	w.From, ok = minutes(first)
	w.To, also = minutes(last)
	if !ok || !also || w.From == 24*60 {
		return wrong
	}
	if len(words) == 2 {
		return (*Rate)(&w.Rate).UnmarshalText([]byte(words[1]))
	}
	return nil
}

// weekday reads the first three letters of one, or all.
func weekday(text string) (time.Weekday, bool) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if name := d.String(); strings.EqualFold(text, name) || strings.EqualFold(text, name[:3]) {
			return d, true
		}
	}
	return 0, false
}

// minutes reads a time of the day, 24:00 being its end.
func minutes(text string) (int, bool) {
	if text == "24:00" {
		return 24 * 60, true
	}
	t, err := time.Parse("15:04", text)
	return 60*t.Hour() + t.Minute(), err == nil
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

// Interval is a Span, or 0, which is never.
type Interval time.Duration

// UnmarshalText reads the text form.
func (i *Interval) UnmarshalText(b []byte) error {
	if string(b) == "0" {
		*i = 0
		return nil
	}
	return (*Span)(i).UnmarshalText(b)
}

// Part is a part of a whole, above none, written as 25%.
type Part float64

// UnmarshalText reads the text form.
func (p *Part) UnmarshalText(b []byte) error {
	text, percent := strings.CutSuffix(string(b), "%")
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !percent || !(n > 0 && n <= 100) { // nor is NaN
		return fmt.Errorf("%q is no part above 0; write it as 25%%, 100%% at most", b)
	}
	*p = Part(n / 100)
	return nil
}

// Bytes is a number of bytes for people; a negative one is unknown.
func Bytes(n int64) string {
	if n < 0 {
		return "?"
	}
	return humanize.IBytes(uint64(n))
}
