// Package seed keeps what a volunteer's seed gives within what its owner allows: how much
// goes out in a month, how fast, and when.
package seed

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// Terms are what the owner of a seed allows. What carries the bytes over the network, some
// hundredths more, and what members say to each other is not counted.
type Terms struct {
	Rate     int64 // bytes a second that go out; 0 is no limit
	Monthly  int64 // bytes of a month of the calendar that go out; 0 is no limit
	Schedule Schedule
}

// Config is what an Allowance is built from.
type Config struct {
	Terms
	// Path is the file in which it is kept what went out, in a folder that exists.
	Path string
	// Now is the clock; its Location decides when months, days and hours begin.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

const (
	// ahead is how much of the month is written down as sent before it is: so much of its
	// allowance a seed that is killed loses, and it never sends more than that.
	ahead = 16 << 20
	// carryMargin is what of a month is not for others' bytes, which are counted when they
	// have gone: a piece of 64 KiB of each of 128 flows may be on its way.
	carryMargin = 8 << 20
	// burst is what may go out at once after a quiet time: a few of the largest objects. A
	// month with less left is used up.
	burst = 1 << 20
	// lookAgain is how often who carries others' bytes looks whether it may go on.
	lookAgain = time.Minute
	// writeAgain is how soon the file is written again that could not be.
	writeAgain = 10 * time.Second
)

// Allowance is what a seed may send, and what it has. Safe for concurrent use.
type Allowance struct {
	cfg   Config
	codec *content.Codec
	pace  *rate.Limiter // of what is carried for others

	mu     sync.Mutex // guards what follows, and is held while the file is written
	book   book
	booked int64 // bytes of the month in the file
	broken error // why the file can't be written
	again  time.Time
}

// Open reads what went out before. Close the Allowance.
func Open(cfg Config) (*Allowance, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	a := &Allowance{cfg: cfg, codec: content.NewCodec(), pace: rate.NewLimiter(rate.Inf, burst)}
	var err error
	if a.book, err = readBook(a.codec, cfg.Path); err != nil {
		return nil, err
	}
	a.booked = a.book.out()
	return a, nil
}

// Close writes down what went out, to the byte.
func (a *Allowance) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.look()
	return a.write(0)
}

// write puts the book on disk, with more of the month than went out. Like all that follows
// and has no lock of its own it is called with mu.
func (a *Allowance) write(more int64) error {
	b := a.book
	if a.cfg.Monthly > 0 {
		more = max(0, min(more, a.cfg.Monthly-b.out()))
	}
	b.Served += more
	data, err := a.codec.Marshal(b)
	if err == nil {
		err = durable.WriteFile(a.cfg.Path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("what this seed has sent can't be written down: %w", err)
	}
	a.booked = b.out()
	return nil
}

// The states of a seed.
const (
	Serving = "serving"
	Resting = "resting" // by its schedule
	UsedUp  = "used up" // the month's bytes are
	Failing = "failing" // what goes out can't be written down
)

// state says whether n more bytes may go out.
func (a *Allowance) state(now time.Time, n int64) string {
	switch _, open := a.cfg.Schedule.at(now); {
	case a.cfg.Monthly > 0 && a.broken != nil:
		return Failing
	case a.cfg.Monthly > 0 && a.book.out()+n > a.cfg.Monthly:
		return UsedUp
	case !open:
		return Resting
	}
	return Serving
}

// Relays reports whether others' bytes may go out now.
func (a *Allowance) Relays() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state(a.look(), carryMargin) == Serving
}

// look returns the time, which may be in a month that begins with it.
func (a *Allowance) look() time.Time {
	now := a.cfg.Now()
	if a.book.turn(now.Format(monthForm)) {
		a.booked = 0
	}
	if a.broken != nil {
		a.note(now, 0)
	}
	return now
}

func (a *Allowance) refusal(now time.Time, n int64) error {
	if s := a.state(now, n); s != Serving {
		return fmt.Errorf("this seed sends nothing now, it is %s: %w", s, content.ErrUnavailable)
	}
	return nil
}

// note writes the book if less is in it than goes out with n more.
func (a *Allowance) note(now time.Time, n int64) {
	if a.broken == nil && a.book.out()+n <= a.booked || a.broken != nil && !now.After(a.again) {
		return
	}
	err := a.write(max(n, ahead))
	if a.again = now.Add(writeAgain); err != nil && a.broken == nil {
		a.cfg.Log.Error("a seed with --monthly sends nothing while this is so", "err", err)
	}
	a.broken = err
}

// Take counts n bytes that are about to go out. If they, or for 0 any, may not, it is
// content.ErrUnavailable. How fast they go is for the caller, see Rate.
func (a *Allowance) Take(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.look()
	err := a.refusal(now, int64(cmp.Or(n, burst)))
	if err == nil && n > 0 {
		a.note(now, int64(n))
		err = a.refusal(now, 0) // it may have failed
	}
	if err == nil {
		a.book.Served += int64(n)
	}
	return err
}

// Rate is how many bytes a second may go out now; 0 is no limit.
func (a *Allowance) Rate() int64 {
	w, _ := a.cfg.Schedule.at(a.cfg.Now())
	return cmp.Or(w.Rate, a.cfg.Rate)
}

// Carried counts n bytes that have gone out for others, and waits until more may, at half
// the rate at most, or ctx ends.
func (a *Allowance) Carried(ctx context.Context, n int) {
	a.mu.Lock()
	a.note(a.look(), int64(n))
	a.book.Relayed += int64(n)
	a.mu.Unlock()
	limit := rate.Inf
	if r := a.Rate(); r > 0 {
		limit = rate.Limit(r) / 2
	}
	if a.pace.Limit() != limit {
		a.pace.SetLimit(limit)
	}
	if a.pace.WaitN(ctx, min(n, burst)) != nil { // it would take longer than ctx has
		<-ctx.Done()
	}
	for !a.Relays() {
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return
		}
	}
}

// Served notes whom n bytes of an image went to.
func (a *Allowance) Served(to, image string, n int64) {
	sum := content.Sum([]byte(to))
	who := binary.BigEndian.Uint64(sum[:])
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.look()
	if _, known := a.book.Peers[who]; known || len(a.book.Peers) < peersMax {
		a.book.Peers[who] = uint8(now.Day())
	}
	if _, known := a.book.Images[image]; !known && len(a.book.Images) >= imagesMax {
		image = otherImages
	}
	a.book.Images[image] += n
}

// otherImages stands for images beyond imagesMax.
const otherImages = "(others)"

// View is how a seed stands, in bytes of this month.
type View struct {
	State    string      `json:"state" enum:"serving,resting,used up,failing" doc:"resting: by its schedule; used up: what it may send this month; failing: what it sends can't be written down"`
	Detail   string      `json:"detail,omitempty" doc:"why, and until when"`
	Month    string      `json:"month" doc:"the one that counts, as 2026-01"`
	Served   int64       `json:"served_bytes"`
	Relayed  int64       `json:"relayed_bytes" doc:"between members that did not reach each other"`
	Monthly  int64       `json:"monthly_bytes,omitempty" doc:"what it may send; absent without a limit"`
	Left     int64       `json:"left_bytes,omitempty" doc:"of it"`
	Rate     int64       `json:"upload_rate,omitempty" doc:"bytes a second that it may send now; absent without a limit"`
	PeersDay int         `json:"peers_today" doc:"members and others that it has sent content to today"`
	PeersAll int         `json:"peers_month" doc:"and this month"`
	Images   []ImageView `json:"images" doc:"what it sent, the most first"`
}

// ImageView is what was sent of an image.
type ImageView struct {
	Name   string `json:"name"`
	Served int64  `json:"served_bytes"`
}

// View says how the seed stands.
func (a *Allowance) View() View {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.look()
	v := View{
		State: a.state(now, burst), Month: a.book.Month, Served: a.book.Served, Relayed: a.book.Relayed, Monthly: a.cfg.Monthly, Rate: a.Rate(), PeersAll: len(a.book.Peers), Images: []ImageView{},
	}
	if a.cfg.Monthly > 0 {
		v.Left = max(0, a.cfg.Monthly-a.book.out())
	}
	for _, day := range a.book.Peers {
		if int(day) == now.Day() {
			v.PeersDay++
		}
	}
	for name, n := range a.book.Images {
		v.Images = append(v.Images, ImageView{name, n})
	}
	slices.SortFunc(v.Images, func(a, b ImageView) int {
		return cmp.Or(cmp.Compare(b.Served, a.Served), strings.Compare(a.Name, b.Name))
	})
	v.Detail = a.detail(now, v.State)
	return v
}

// detail says until when a seed sends nothing, and what is odd.
func (a *Allowance) detail(now time.Time, state string) string {
	var out []string
	month, err := time.ParseInLocation(monthForm, a.book.Month, now.Location())
	switch {
	case state == Failing:
		out = append(out, a.broken.Error())
	case state == UsedUp && err == nil:
		out = append(out, "it serves again from "+month.AddDate(0, 1, 0).Format(time.DateOnly))
	case state == Resting:
		if at := a.cfg.Schedule.opens(now); !at.IsZero() {
			out = append(out, "it serves again from "+at.Format("Mon 15:04"))
		}
	}
	if name := now.Format(monthForm); err == nil && name != a.book.Month {
		out = append(out, fmt.Sprintf("the clock says %s and was in %s before, for which all counts until then; if it was wrong then, stop the seed and remove %s", name, a.book.Month, a.cfg.Path))
	}
	return strings.Join(out, "; ")
}
