package units

import (
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for text, want := range map[string]Span{"30s": Span(30 * time.Second), "7d": Span(7 * Day), "1h30m": Span(90 * time.Minute)} {
		var s Span
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "30", "d", "-1d", "1.5d", "0s", "-1h", "999999999d", "-999999999999d", "1y"} {
		if err := new(Span).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestFrequency(t *testing.T) {
	for text, want := range map[string]Frequency{"100/s": 100, "0.5/s": 0.5, "7": 7, "1e3/s": 1000} {
		var f Frequency
		if err := f.UnmarshalText([]byte(text)); err != nil || f != want {
			t.Errorf("%q: %v, %v", text, f, err)
		}
	}
	for _, text := range []string{"", "0/s", "-1/s", "NaN", "Inf/s", "x", "5 /s", "5/s/s", "5/m"} {
		if err := new(Frequency).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"10G": 10 << 30, "10GiB": 10 << 30, "10g": 10 << 30, "1.5T": 3 << 39, "500MB": 500e6, "64K": 64 << 10, "512": 512, "7M": 7 << 20} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "0", "0GiB", "G", "-1G", "10X", "1e30G"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestWindow(t *testing.T) {
	days := func(of ...time.Weekday) (out [7]bool) {
		for _, d := range of {
			out[d] = true
		}
		return out
	}
	all := days(0, 1, 2, 3, 4, 5, 6)
	for text, want := range map[string]Window{
		"22:00-06:00":                  {Days: all, From: 22 * 60, To: 6 * 60},
		"mon-fri 22:00-06:30":          {Days: days(1, 2, 3, 4, 5), From: 22 * 60, To: 6*60 + 30},
		"Sat-mon 00:00-24:00 2MiB/s":   {Days: days(6, 0, 1), From: 0, To: 24 * 60, Rate: 2 << 20},
		"sunday 9:05-10:00":            {Days: days(0), From: 9*60 + 5, To: 600},
		" wed   10:00-11:00  100KiB/s": {Days: days(3), From: 600, To: 660, Rate: 100 << 10},
	} {
		var w Window
		if err := w.UnmarshalText([]byte(text)); err != nil || w != want {
			t.Errorf("%q: %v, %v", text, w, err)
		}
	}
	for _, text := range []string{"", "mon", "mon-fri", "22:00", "22:00-", "-06:00", "24:00-06:00", "25:00-06:00", "22-6", "day 22:00-06:00", "mon- 1:00-2:00 3", "mon-day 1:00-2:00", "1:00-2:00 x", "mon 1:00-2:00 1M/s x", "1:00-2:00 0/s"} {
		if err := new(Window).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
