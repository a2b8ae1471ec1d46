package seed

import "time"

// Window is a time of each week, by the clock on the wall, in which a seed serves. One that
// ends before it begins, or when, ends on the next day.
type Window struct {
	Days     [7]bool // on which it begins, by time.Weekday
	From, To int     // minutes after midnight; To is at most 24*60
	Rate     int64   // bytes a second meanwhile; 0 is the rate of the seed
}

// Schedule are the windows in which a seed serves, always when there are none. Where two
// overlap the first counts.
type Schedule []Window

func (w Window) covers(wall time.Time) bool {
	day, at := wall.Weekday(), 60*wall.Hour()+wall.Minute()
	if w.From < w.To {
		return w.Days[day] && w.From <= at && at < w.To
	}
	return w.Days[day] && w.From <= at || w.Days[(day+6)%7] && at < w.To
}

// at returns the window that a moment is in. A moment's wall is that of its Location: an
// hour that a change of the clocks leaves out is in none, and one that comes twice is in a
// window twice.
func (s Schedule) at(now time.Time) (w Window, open bool) {
	for _, w := range s {
		if w.covers(now) {
			return w, true
		}
	}
	return Window{}, len(s) == 0
}

// week is how far opens looks: a day more for where the clocks change.
const week = 8 * 24 * time.Hour

// opens returns when the next window begins; zero if none does, or one is open.
func (s Schedule) opens(now time.Time) time.Time {
	if _, open := s.at(now); open {
		return time.Time{}
	}
	for at := now.Truncate(time.Minute); at.Sub(now) < week; at = at.Add(time.Minute) {
		if _, open := s.at(at); open {
			return at
		}
	}
	return time.Time{}
}
