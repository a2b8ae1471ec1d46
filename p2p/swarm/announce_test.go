package swarm

import (
	"errors"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

func TestAnnouncementsAreDue(t *testing.T) {
	now := time.Unix(0, 0)
	k := keyOf("root")
	for name, tc := range map[string]struct {
		failures, known int // of the tries before
		after           time.Duration
		knows           int
		want            bool
	}{
		"soon after success":                      {known: 30, after: time.Minute, knows: 300},
		"after success, in time":                  {known: 30, after: reannounce, knows: 30, want: true},
		"more than twice as many are known":       {known: 4, after: time.Second, knows: 9, want: true},
		"a few more are known":                    {known: 4, after: time.Second, knows: 7},
		"failed just now":                         {failures: 1, after: announceRetry / 2, knows: 0},
		"failed a while ago":                      {failures: 1, after: announceRetry, knows: 0, want: true},
		"failed thrice, others are found at once": {failures: 3, after: announceRetry, knows: 9},
		"failed often":                            {failures: 40, after: announceRetryMax, knows: 0, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			a := announcements{keys: map[Key]*announcement{}}
			if added, err := a.add(k); !added || err != nil {
				t.Fatal(added, err)
			}
			if len(a.due(now, 0)) != 1 {
				t.Error("a new key is not due")
			}
			for range tc.failures {
				a.done(k, now, 0, false)
			}
			if tc.failures == 0 {
				a.done(k, now, tc.known, true)
			}
			if got := len(a.due(now.Add(tc.after), tc.knows)) == 1; got != tc.want {
				t.Errorf("due = %v", got)
			}
		})
	}
}

func TestWithdrawnKeysAreDueNoMore(t *testing.T) {
	a := announcements{keys: map[Key]*announcement{}}
	k := keyOf("root")
	a.add(k)
	if added, err := a.add(k); added || err != nil {
		t.Error("a key was added twice", err)
	}
	a.remove(k)
	a.done(k, time.Unix(0, 0), 1, true) // the announcement that was on its way
	if a.count() != 0 || len(a.due(time.Unix(1e9, 0), 100)) != 0 {
		t.Error("a withdrawn key is due")
	}
}

func TestAnnouncementsAreBounded(t *testing.T) {
	a := announcements{keys: map[Key]*announcement{}}
	for i := range announcementsMax {
		if _, err := a.add(Key{byte(i), byte(i >> 8)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.add(Key{0, 0, 1}); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("one too many: %v", err)
	}
}
