package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/turns"
	"github.com/grangemesh/grange/p2p/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kib = 1 << 10
	mib = 1 << 20
)

// clock is one that a test sets.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

// desk is a seed's allowance that is opened again and again over one file.
type desk struct {
	*Allowance
	t *testing.T
	Config
}

func open(t *testing.T, terms Terms, now func() time.Time) *desk {
	t.Helper()
	d := &desk{t: t, Config: Config{Terms: terms, Path: filepath.Join(t.TempDir(), "sent"), Now: now}}
	d.killed()
	return d
}

// killed opens what a process that was killed has left.
func (d *desk) killed() {
	d.t.Helper()
	var err error
	if d.Allowance, err = Open(d.Config); err != nil {
		d.t.Fatal(err)
	}
}

// send takes pieces until one is refused, and returns how many bytes went out.
func (d *desk) send(piece, most int) (out int64) {
	d.t.Helper()
	for out < int64(most) {
		if err := d.Take(piece); errors.Is(err, content.ErrUnavailable) {
			return out
		} else if err != nil {
			d.t.Fatal(err)
		}
		out += int64(piece)
	}
	return out
}

func at(text string) time.Time {
	t, err := time.Parse(time.DateTime, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestTheMonthIsNeverOverdrawn(t *testing.T) {
	c := &clock{at("2026-01-31 23:59:00")}
	d := open(t, Terms{Monthly: 100 * mib}, c.Now)
	if out := d.send(128*kib, 1<<40); out != 100*mib {
		t.Fatalf("%d bytes went out", out)
	}
	v := d.View()
	if v.State != UsedUp || v.Left != 0 || v.Detail != "it serves again from 2026-02-01" || d.Take(0) == nil || d.Relays() {
		t.Errorf("%+v", v)
	}
	d.killed()
	if d.Take(0) == nil {
		t.Error("a restart has given a new allowance")
	}
	c.now = at("2026-02-01 00:00:00")
	if out := d.send(mib, 30*mib); out != 30*mib || d.View().State != Serving || d.View().Left != 70*mib {
		t.Errorf("in the next month %d went out, %+v", out, d.View())
	}
}

// TestAClockSetBackGivesNothing, nor does one that was set forth and back.
func TestAClockSetBackGivesNothing(t *testing.T) {
	c := &clock{at("2026-03-10 12:00:00")}
	d := open(t, Terms{Monthly: 50 * mib}, c.Now)
	total := d.send(mib, 1<<40)
	for _, now := range []string{"2026-02-10 12:00:00", "1970-01-01 00:00:00", "2026-03-01 00:00:00"} {
		c.now = at(now)
		total += d.send(mib, 1<<40)
		d.killed()
		total += d.send(mib, 1<<40)
	}
	if total != 50*mib {
		t.Fatalf("%d bytes went out", total)
	}
	c.now = at("2026-02-10 12:00:00")
	if v := d.View(); v.Month != "2026-03" || v.State != UsedUp || !bytes.Contains([]byte(v.Detail), []byte("remove "+d.Path)) {
		t.Errorf("%+v", v)
	}
	for _, now := range []string{"2026-04-01 00:00:00", "2026-03-20 00:00:00", "2026-04-02 00:00:00"} {
		c.now = at(now)
		total += d.send(mib, 1<<40)
	}
	if total != 100*mib {
		t.Errorf("%d bytes went out in two months", total)
	}
}

// TestAKillCostsNoMoreThanItSays, however often: the seed sends no more than it may, and
// loses so much of it at most.
func TestAKillCostsNoMoreThanItSays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := &clock{at("2026-03-10 12:00:00")}
		const monthly = 200 * mib
		d := open(t, Terms{Monthly: monthly}, c.Now)
		sent, kills := int64(0), int64(0)
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			switch rapid.IntRange(0, 3).Draw(rt, "step") {
			case 0:
				d.killed()
				kills++
			case 1:
				if err := d.Close(); err != nil {
					rt.Fatal(err)
				}
				d.killed()
			default:
				sent += d.send(rapid.IntRange(100*kib, 3*mib).Draw(rt, "piece"), rapid.IntRange(0, 40*mib).Draw(rt, "most"))
			}
			if v := d.View(); sent > monthly || v.Served < sent || v.Served > sent+kills*ahead {
				rt.Fatalf("%d sent, %d counted after %d kills", sent, v.Served, kills)
			}
		}
	})
}

// TestWhatCantBeWrittenDownIsNotSent where there is a limit of the month.
func TestWhatCantBeWrittenDownIsNotSent(t *testing.T) {
	c := &clock{at("2026-03-10 12:00:00")}
	d := open(t, Terms{Monthly: 50 * mib}, c.Now)
	home := filepath.Dir(d.Path)
	if err := os.Rename(home, home+".away"); err != nil {
		t.Fatal(err)
	}
	if out := d.send(mib, 1<<40); out != 0 || d.View().State != Failing {
		t.Errorf("%d bytes went out, %+v", out, d.View())
	}
	if err := os.Rename(home+".away", home); err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(writeAgain + 1)
	if out := d.send(mib, 1<<40); out != 50*mib {
		t.Errorf("%d bytes went out", out)
	}
}

// line is what a node puts around an allowance: the turns of its exchange, and its relay.
type line struct {
	*desk
	turns turns.Turns
}

func newLine(d *desk) *line {
	l := &line{desk: d, turns: turns.Turns{Max: 8}}
	l.turns.Limit(d.Rate())
	return l
}

const object, piece = 128 * kib, 64 * kib

// ask sends an object to an asker.
func (l *line) ask(ctx context.Context) error {
	if err := l.Take(0); err != nil {
		return err
	}
	t := turns.NewTicket("asker", wire.PriorityPrefetch)
	t.Size = object
	if err := l.turns.Wait(ctx, t); err != nil {
		return err
	}
	err := l.Take(object)
	if err != nil {
		l.turns.Forgo(t)
		return err
	}
	l.turns.Give(t, object)
	return nil
}

// carry carries a piece for others.
func (l *line) carry(ctx context.Context) error {
	if !l.Relays() {
		return content.ErrUnavailable
	}
	l.turns.Spend(piece)
	l.Carried(ctx, piece)
	return ctx.Err()
}

// besiege has askers and circuits want all that they can get, and counts it, until ctx ends.
func (l *line) besiege(ctx context.Context, sent func(n int64)) {
	var all sync.WaitGroup
	again := func(do func(context.Context) error, n int64) {
		all.Go(func() {
			for ctx.Err() == nil {
				if do(ctx) == nil {
					sent(n)
					continue
				}
				select {
				case <-time.After(30 * time.Second):
				case <-ctx.Done():
				}
			}
		})
	}
	for range 8 {
		again(l.ask, object)
		again(l.carry, piece)
	}
	all.Go(func() {
		for rate := l.Rate(); ctx.Err() == nil; {
			if now := l.Rate(); now != rate {
				rate = now
				l.turns.Limit(now)
			}
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
			}
		}
	})
	all.Wait()
}

// TestADayOfAVolunteer: many askers and circuits, who want all they can get, in a day of
// virtual time: the rate of each window, and the hours between them, hold.
func TestADayOfAVolunteer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		every := [7]bool{true, true, true, true, true, true, true}
		terms := Terms{Rate: 256 * kib, Monthly: 64 << 30, Schedule: Schedule{{Days: every, From: 22 * 60, To: 6 * 60}, {Days: every, From: 12 * 60, To: 13 * 60, Rate: 64 * kib}}}
		l := newLine(open(t, terms, func() time.Time { return time.Now().UTC() }))
		ctx, stop := context.WithTimeout(t.Context(), 24*time.Hour)
		defer stop()
		var mu sync.Mutex
		hours := map[int]int64{}
		l.besiege(ctx, func(n int64) {
			mu.Lock()
			defer mu.Unlock()
			hours[time.Now().UTC().Hour()] += n
		})
		const slack = burst + 8*(object+piece) // on its way when the hour ends
		var total int64
		for hour, out := range hours {
			limit := int64(0)
			switch {
			case hour >= 22 || hour < 6:
				limit = 3600 * 256 * kib
			case hour == 12:
				limit = 3600 * 64 * kib
			}
			if total += out; out > limit+slack || limit > 0 && out < limit*9/10 {
				t.Errorf("hour %d: %d bytes, of %d", hour, out, limit)
			}
		}
		if v := l.View(); v.Served+v.Relayed > total+slack || v.Relayed == 0 || v.Served == 0 || len(hours) < 9 {
			t.Errorf("%d went out: %+v", total, v)
		}
	})
}

// TestADayThatUsesUpTheMonth: it is no byte more, whoever wants what, and the next month's
// begin with it.
func TestADayThatUsesUpTheMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const monthly = 512 * mib
		l := newLine(open(t, Terms{Rate: mib, Monthly: monthly}, func() time.Time { return time.Now().UTC().Add(30*24*time.Hour + 12*time.Hour) }))
		ctx, stop := context.WithTimeout(t.Context(), 24*time.Hour)
		defer stop()
		var mu sync.Mutex
		months := map[string]int64{}
		l.besiege(ctx, func(n int64) {
			mu.Lock()
			defer mu.Unlock()
			months[l.Now().Format(monthForm)] += n
		})
		for name, out := range months {
			if out > monthly+8*piece || out < monthly-carryMargin {
				t.Errorf("%s: %d bytes", name, out)
			}
		}
		if v := l.View(); len(months) != 2 || v.State != UsedUp || v.Served+v.Relayed > monthly || l.Take(0) == nil {
			t.Errorf("%v: %+v", months, v)
		}
	})
}

func TestWhomItServed(t *testing.T) {
	c := &clock{at("2026-03-10 12:00:00")}
	d := open(t, Terms{}, c.Now)
	for i := range 5 {
		d.Served(fmt.Sprint("peer", i), "debian", 10)
	}
	c.now = c.now.Add(24 * time.Hour)
	d.Served("peer0", "debian", 10)
	d.Served("peer9", "alpine", 100)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.killed()
	if v := d.View(); v.PeersDay != 2 || v.PeersAll != 6 || fmt.Sprint(v.Images) != "[{alpine 100} {debian 60}]" || v.State != Serving {
		t.Errorf("%+v", v)
	}
	for i := range 2 * imagesMax {
		d.Served("peer0", fmt.Sprint("image", i), 1)
	}
	for i := range peersMax {
		d.Served(fmt.Sprint("another", i), "debian", 1)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.killed() // it can be read
	c.now = at("2026-04-01 00:00:00")
	if v := d.View(); v.PeersAll != 0 || len(v.Images) != 0 {
		t.Errorf("in the next month: %+v", v)
	}
}

func TestSchedule(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	work := [7]bool{time.Monday: true, time.Friday: true}
	nights := Schedule{{Days: work, From: 22 * 60, To: 6 * 60, Rate: 7}}
	early := Schedule{{Days: [7]bool{time.Sunday: true}, From: 2 * 60, To: 3 * 60}}
	for _, c := range []struct {
		s     Schedule
		at    string
		open  bool
		opens string
	}{
		{nil, "2026-03-10 12:00:00", true, ""},
		{nights, "2026-03-09 21:59:59", false, "2026-03-09 22:00:00"}, // a Monday
		{nights, "2026-03-09 22:00:00", true, ""},
		{nights, "2026-03-10 05:59:59", true, ""},
		{nights, "2026-03-10 06:00:00", false, "2026-03-13 22:00:00"},
		{nights, "2026-03-14 03:00:00", true, ""}, // of Friday's
		{nights, "2026-03-15 03:00:00", false, "2026-03-16 22:00:00"},
		{Schedule{{Days: work, From: 0, To: 24 * 60}}, "2026-03-09 23:59:59", true, ""},
		{Schedule{{Days: work, From: 8 * 60, To: 8 * 60}}, "2026-03-10 07:59:00", true, ""}, // a day long
		{Schedule{{From: 0, To: 24 * 60}}, "2026-03-09 23:59:59", false, ""},                // on no day
		{early, "2026-03-22 02:30:00", true, ""},
		// On the 29th the clocks go from 2 to 3: the hour is left out.
		{early, "2026-03-29 01:59:00", false, "2026-04-05 02:00:00"},
		{early, "2026-03-29 03:00:00", false, "2026-04-05 02:00:00"},
	} {
		now, err := time.ParseInLocation(time.DateTime, c.at, berlin)
		if err != nil {
			t.Fatal(err)
		}
		_, open := c.s.at(now)
		opens := ""
		if next := c.s.opens(now); !next.IsZero() {
			opens = next.Format(time.DateTime)
		}
		if open != c.open || opens != c.opens {
			t.Errorf("%s: open %v, opens %q, want %v, %q", c.at, open, opens, c.open, c.opens)
		}
	}
	// On 25 October the clocks go from 3 back to 2: the hour comes twice.
	minutes := 0
	for at := time.Date(2026, 10, 25, 0, 0, 0, 0, berlin); at.Day() == 25; at = at.Add(time.Minute) {
		if _, open := early.at(at); open {
			minutes++
		}
	}
	if minutes != 120 {
		t.Errorf("open for %d minutes", minutes)
	}
}

func golden() book {
	return book{
		Magic: bookMagic, Month: "2026-03", Served: 1 << 40, Relayed: 5,
		Peers: map[uint64]uint8{1: 31, 1 << 63: 1}, Images: map[string]int64{"debian:13": 99},
	}
}

func TestBookGolden(t *testing.T) {
	codec := content.NewCodec()
	want, err := os.ReadFile(filepath.Join("testdata", "book.golden"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := codec.Marshal(golden())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("encoded as %x, %v", got, err)
	}
	b, err := decodeBook(codec, want)
	if err != nil || fmt.Sprint(b) != fmt.Sprint(golden()) {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestATornBookIsNoNewAllowance: a file that says nothing stops the start.
func TestATornBookIsNoNewAllowance(t *testing.T) {
	c := &clock{at("2026-03-10 12:00:00")}
	d := open(t, Terms{Monthly: 50 * mib}, c.Now)
	d.send(mib, 1<<40)
	whole, err := os.ReadFile(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if err := os.WriteFile(d.Path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(d.Config); !errors.Is(err, content.ErrCorrupt) {
			t.Fatalf("with %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func FuzzBook(f *testing.F) {
	codec := content.NewCodec()
	b, err := codec.Marshal(golden())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeBook(codec, b)
		if err != nil {
			return
		}
		again, err := codec.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decodeBook(codec, again); err != nil || fmt.Sprint(same) != fmt.Sprint(got) {
			t.Fatalf("%+v came back as %+v, %v", got, same, err)
		}
	})
}
