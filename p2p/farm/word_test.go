package farm

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
)

// wordOf is a word of the member n0 of farm a.
func wordOf(t testing.TB, w word) word {
	t.Helper()
	w, err := w.sign("a", signerOf("n0", trust.RoleNode, "a"))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWordGolden(t *testing.T) {
	id := idNamed("n0")
	w := wordOf(t, word{
		address: "10.0.0.5:7946", number: 1_800_000_000_000,
		addrs: []ma.Multiaddr{ma.StringCast("/ip4/10.0.0.5/tcp/4001"), ma.StringCast("/ip6/2001:db8::1/udp/4001/quic-v1")},
	})
	golden.Check(t, "word", []byte(w.raw))
	back, err := readWord("a", id, w.address, []byte(w.raw))
	if err != nil || back.number != w.number || !slices.EqualFunc(back.addrs, w.addrs, ma.Multiaddr.Equal) {
		t.Errorf("read %+v, %v", back, err)
	}
}

// TestWordStandsForOneMemberFarmAndAddress: nobody can say a word for another, nor
// show one elsewhere.
func TestWordStandsForOneMemberFarmAndAddress(t *testing.T) {
	w := wordOf(t, word{address: "10.0.0.5:7946", number: 1})
	for name, err := range map[string]error{
		"another farm":    second(readWord("b", idNamed("n0"), w.address, []byte(w.raw))),
		"another address": second(readWord("a", idNamed("n0"), "10.0.0.6:7946", []byte(w.raw))),
		"another member":  second(readWord("a", idNamed("n1"), w.address, []byte(w.raw))),
	} {
		if !errors.Is(err, content.ErrForbidden) {
			t.Errorf("%s: %v, want ErrForbidden", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestWordLeavesOutWhatIsTooMuch(t *testing.T) {
	w := wordOf(t, word{addrs: slices.Repeat([]ma.Multiaddr{ma.StringCast("/ip6/2001:db8:1111:2222:3333:4444:5555:6666/udp/40001/quic-v1")}, 30)})
	if len(w.raw) > wordMax {
		t.Fatalf("%d bytes", len(w.raw))
	}
	if back, err := readWord("a", idNamed("n0"), "", []byte(w.raw)); err != nil || len(back.addrs) < 16 {
		t.Errorf("%d addresses, %v", len(back.addrs), err)
	}
	if _, err := (word{addrs: []ma.Multiaddr{ma.StringCast("/dns/" + strings.Repeat("x", 300))}}).sign("a", signerOf("n0", trust.RoleNode, "a")); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a huge address: %v", err)
	}
}

// FuzzWord reads arbitrary words of a member who signs them all.
func FuzzWord(f *testing.F) {
	signer, id := signerOf("n0", trust.RoleNode, "a"), idNamed("n0")
	f.Add([]byte(wordOf(f, word{number: 1, addrs: []ma.Multiaddr{ma.StringCast("/ip4/10.0.0.5/tcp/4001")}}).raw))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= wordHeader {
			b = bytes.Clone(b)
			copy(b[wordSigned:], signer.Attest(trust.PurposeGossip, signedPart("a", "", b)))
		}
		w, err := readWord("a", id, "", b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%v, want ErrCorrupt", err)
			}
			return
		}
		if again, err := w.sign("a", signer); err != nil || again.raw != string(b) {
			t.Errorf("%q comes back as %q, %v", b, again.raw, err)
		}
	})
}
