package farm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

// TestNoticesSayNothingToStrangers: two of one member have nothing in common but the place,
// neither names the farm, and only who has the key and the farm's name can tell.
func TestNoticesSayNothingToStrangers(t *testing.T) {
	key, other := [32]byte{1}, [32]byte{2}
	a, b := newNotice(key, "garden", "10.0.0.5:7946"), newNotice(key, "garden", "10.0.0.5:7946")
	if a.nonce == b.nonce || a.tag == b.tag {
		t.Errorf("%+v and %+v can be connected", a, b)
	}
	for _, n := range []notice{a, b} {
		packet, err := n.pack(7)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(packet, []byte("garden")) {
			t.Errorf("a stranger reads %q", packet)
		}
		got, err := readNotice(packet)
		if err != nil || got != n {
			t.Errorf("read %+v, %v; said %+v", got, err, n)
		}
		if got.sum(key, "garden") != got.tag || got.sum(other, "garden") == got.tag || got.sum(key, "meadow") == got.tag {
			t.Error("who has neither the key nor the farm takes it for a neighbour's, or who has both does not")
		}
		got.address = "10.0.0.6:7946"
		if got.sum(key, "garden") == got.tag {
			t.Error("a stranger has sent it elsewhere")
		}
	}
}

// TestQuestions are what multicast DNS takes for some, and nothing else is.
func TestQuestions(t *testing.T) {
	q := question()
	question, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := asked(question); !ok || id != 0 {
		t.Errorf("it is number %d, %v", id, ok)
	}
	answer, err := newNotice([32]byte{}, "a", "10.0.0.5:7946").pack(7)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := asked(answer); ok {
		t.Error("an answer is taken for a question")
	}
	if _, err := readNotice(question); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a question as an answer: %v", err)
	}
	if strings.Contains(string(question), "farm") {
		t.Errorf("it says %q", question)
	}
}

// TestStrangersAreNotRemembered: what they answer has nobody joined.
func TestStrangersAreNotRemembered(t *testing.T) {
	f, _ := start(t, configOf("n0"))
	for range 1000 {
		f.meet(newNotice([32]byte{9}, f.name, "10.0.0.5:7946"))
		f.meet(newNotice(f.cfg.Key, "meadow", "10.0.0.6:7946"))
	}
	if _, targets := f.targets(f.cfg.Now()); len(targets) != 0 {
		t.Errorf("it would join %v", targets)
	}
	f.meet(newNotice(f.cfg.Key, f.name, f.Address()))
	f.meet(newNotice(f.cfg.Key, f.name, "127.0.0.9:7946"))
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.found) > 1 || f.found[f.word.address] {
		t.Errorf("it has found %v", f.found)
	}
}

func TestNoticeGolden(t *testing.T) {
	n := notice{nonce: strings.Repeat("0a", 16), address: "[fd77::5]:7946"}
	n.tag = n.sum([32]byte{1, 2, 3}, "garden")
	b, err := n.pack(0x1234)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "notice", b)
}

func FuzzNotice(f *testing.F) {
	q := question()
	question, _ := q.Pack()
	answer, _ := newNotice([32]byte{}, "a", "10.0.0.5:7946").pack(7)
	f.Add(question)
	f.Add(answer)
	f.Fuzz(func(t *testing.T, b []byte) {
		asked(b)
		n, err := readNotice(b)
		if err != nil {
			return
		}
		if packet, err := n.pack(1); err == nil {
			if again, err := readNotice(packet); err != nil || again != n {
				t.Errorf("%+v is read again as %+v, %v", n, again, err)
			}
		}
	})
}
