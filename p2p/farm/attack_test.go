package farm

import (
	"fmt"
	"io"
	"log"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// puppet gossips with the farm's key and says whatever it is told to.
type puppet struct {
	name  string
	word  string
	proof []proof
	key   [32]byte
}

func (p *puppet) NodeMeta(int) []byte             { return []byte(p.word) }
func (p *puppet) NotifyMsg([]byte)                {}
func (p *puppet) GetBroadcasts(int, int) [][]byte { return nil }
func (p *puppet) MergeRemoteState([]byte, bool)   {}
func (p *puppet) LocalState(bool) []byte {
	b, err := content.NewCodec().Marshal(p.proof)
	if err != nil {
		panic(err)
	}
	return b
}

// puppetOf says the truth about a member, as far as it goes, at the port of that
// number.
func puppetOf(signer trust.Signer, name string, number int) *puppet {
	id := idNamed(name)
	w := word{address: fmt.Sprintf("10.0.0.%d:7946", number), number: uint64(time.Now().UnixMilli()), addrs: []ma.Multiaddr{ma.StringCast("/ip4/6.6.6.6/tcp/1")}}
	w, err := w.sign("a", signer)
	if err != nil {
		panic(err)
	}
	sealed, err := content.NewCodec().Marshal(signer.Chain)
	if err != nil {
		panic(err)
	}
	return &puppet{id.String(), w.raw, []proof{{Node: id.String(), Address: w.address, Word: []byte(w.raw), Chain: sealed}}, [32]byte{1}}
}

// play starts a puppet, which has joined the farm if it is let in.
func (s *simulated) play(p *puppet, number int) error {
	port := s.lan.plug(number)
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.SecretKey, c.Transport, c.Delegate = p.name, label("a"), p.key[:], port, p
	c.Logger = log.New(io.Discard, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.stops = append(s.stops, func() { list.Shutdown() })
	_, err = list.Join([]string{"10.0.0.1:7946"})
	return err
}

// during looks at the farm every tenth of a second, and stops at what is wrong.
func (s *simulated) during(d time.Duration, wrong func() string) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		if text := wrong(); text != "" {
			s.t.Fatalf("%s before the end of %s", text, d)
		}
	}
}

func TestKeyAloneListsNothing(t *testing.T) {
	bad := func(role trust.Role, farm string) func() *puppet {
		return func() *puppet { return puppetOf(signerOf("bad", role, farm), "bad", 50) }
	}
	for _, c := range []struct {
		what string
		p    func() *puppet
		good bool
	}{
		{"a member", bad(trust.RoleNode, "a"), true},
		{"no certificate", func() *puppet { return puppetOf(trust.Signer{Key: keyNamed("bad")}, "bad", 50) }, false},
		{"another's certificate", func() *puppet {
			forged, other := bad(trust.RoleNode, "a")(), puppetOf(signerOf("other", trust.RoleNode, "a"), "other", 50)
			forged.proof[0].Chain = other.proof[0].Chain
			return forged
		}, false},
		{"another farm's", bad(trust.RoleAdmin, "b"), false},
		{"a seed", bad(trust.RoleSeed, "a"), false},
		{"escape codes", func() *puppet { return &puppet{name: "\x1b]0;owned\a", key: [32]byte{1}} }, false},
		{"revoked", bad(trust.RoleNode, "a"), false},
	} {
		t.Run(c.what, func(t *testing.T) {
			simulate(t, 3, func(t *testing.T, s *simulated) {
				if c.what == "revoked" {
					for _, f := range s.farms {
						f.cfg.Verifier.Revoke(map[trust.PublicKey]time.Time{keyNamed("bad").Public(): time.Now()})
					}
				}
				if err := s.play(c.p(), 50); err != nil {
					t.Fatal(err)
				}
				if c.good {
					s.settle(5*time.Second, func() bool { return s.allSee(4) })
					return
				}
				s.during(30*time.Second, func() string {
					if !s.allSee(3) {
						return fmt.Sprintf("members %v", s.farms[0].Members())
					}
					return ""
				})
			})
		})
	}
}

func TestRevokedLeavesTheListAtOnce(t *testing.T) {
	simulate(t, 4, func(t *testing.T, s *simulated) {
		f := s.farms[0]
		f.cfg.Verifier.Revoke(map[trust.PublicKey]time.Time{keyNamed("n02").Public(): time.Now()})
		f.Recheck()
		if len(f.Members()) != 3 || len(f.Live()) != 3 || f.of("n02").Address != "" {
			t.Errorf("members %+v", f.Members())
		}
		s.during(30*time.Second, func() string {
			if f.of("n02").Address != "" {
				return "the revoked one is back"
			}
			return ""
		})
	})
}

// TestNameOfTheLivingIsSafe: whoever has the key and all that a member ever said can't
// be listed in its place, whether it lives or not.
func TestNameOfTheLivingIsSafe(t *testing.T) {
	simulate(t, 4, func(t *testing.T, s *simulated) {
		victim := s.farms[2]
		if err := s.play(&puppet{victim.self.ID.String(), victim.word.raw, victim.proofs(false), [32]byte{1}}, 50); err != nil {
			t.Log(err)
		}
		elsewhere := func() string {
			for _, f := range s.farms[:2] {
				if m := f.of("n02"); m.Address == "10.0.0.50:7946" {
					return "the impostor is listed"
				}
			}
			return ""
		}
		s.during(30*time.Second, elsewhere)
		if !s.allSee(4) {
			t.Error("members", s.counts())
		}
		s.ports[2].crash()
		s.settle(time.Minute, func() bool { return s.allSee(3) })
		s.during(30*time.Second, elsewhere)
	})
}

// TestWordOfAnEarlierStartDoesNotCount: a member has moved, and another takes its
// address and shows its old word.
func TestWordOfAnEarlierStartDoesNotCount(t *testing.T) {
	simulate(t, 4, func(t *testing.T, s *simulated) {
		old := &puppet{idNamed("n03").String(), s.farms[3].word.raw, s.farms[3].proofs(false), [32]byte{1}}
		s.ports[3].crash()
		s.settle(time.Minute, func() bool { return s.allSee(3) })
		back := s.add("n03", 77)
		s.settle(time.Minute, func() bool { return s.allSee(4) })
		back.cfg.Transport.(*port).crash()
		s.settle(time.Minute, func() bool { return s.farms[0].of("n03").Address == "" })
		if err := s.play(old, 4); err != nil {
			t.Log(err)
		}
		s.during(30*time.Second, func() string {
			if m := s.farms[0].of("n03"); m.Address != "" {
				return "it is listed at " + m.Address
			}
			return ""
		})
	})
}

func TestMissedCertificateIsFetched(t *testing.T) {
	simulate(t, 4, func(t *testing.T, s *simulated) {
		f := s.farms[0]
		f.mu.Lock()
		f.roster[idNamed("n02")].cert = certificate{}
		f.publish()
		f.mu.Unlock()
		s.settle(2*rejoinInterval, func() bool { return s.allSee(4) })
	})
}

// heard reports whether the member of another is listed by its newest word.
func (f *Farm) heard(other *Farm) bool {
	other.mu.Lock()
	raw := other.word.raw
	other.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.roster[other.self.ID]
	return k != nil && k.listed() && k.word.raw == raw
}

func TestRestart(t *testing.T) {
	for name, behind := range map[string]time.Duration{"soon": 0, "with a clock that went back": 3 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 4, func(t *testing.T, s *simulated) {
				s.stops[3]()
				s.settle(time.Minute, func() bool { return len(s.farms[0].Members()) == 3 })
				cfg := configOf("n03")
				cfg.Now = func() time.Time { return time.Now().Add(-behind) }
				cfg.Signer.Chain = s.farms[3].cfg.Signer.Chain
				again := s.run(cfg, 4)
				took := s.settle(time.Minute, func() bool { return s.allSee(4) && s.farms[0].heard(again) })
				if behind == 0 && took > time.Second {
					t.Errorf("it was back after %s", took)
				}
			})
		})
	}
}

// TestRotation: members get the new key at different times, one of them late.
func TestRotation(t *testing.T) {
	simulate(t, 5, func(t *testing.T, s *simulated) {
		fresh := [32]byte{2}
		rotate := func(f *Farm) {
			if err := f.Rotate(fresh); err != nil {
				t.Fatal(err)
			}
		}
		apart := func() string {
			if !s.allSee(5) {
				return fmt.Sprintf("members %v", s.counts())
			}
			return ""
		}
		for _, f := range s.farms {
			rotate(f)
			s.during(keySpread/10, apart)
		}
		s.during(2*keySpread, apart)
		old := puppetOf(signerOf("n05", trust.RoleNode, "a"), "n05", 50)
		<-time.After(keyGrace)
		if err := s.play(old, 50); err == nil {
			t.Error("the key before is understood still")
		}
		if keys := s.farms[0].ring.GetKeys(); len(keys) != 1 || !slices.Equal(keys[0], fresh[:]) {
			t.Errorf("%d keys", len(keys))
		}
		cfg := configOf("n05")
		late := s.run(cfg, 6) // it has the old key
		s.during(30*time.Second, func() string {
			if n := len(s.farms[0].Members()); n != 5 {
				return fmt.Sprint(n, " members")
			}
			return ""
		})
		rotate(late)
		s.settle(2*keySpread, func() bool { return s.allSee(6) })
	})
}

func TestUseOfKeys(t *testing.T) {
	begun := time.Unix(1e9, 0)
	keys := []agedKey{{}, {since: begun}, {since: begun.Add(keySpread / 2)}}
	for _, c := range []struct {
		after          time.Duration
		spoken, oldest int
		next           time.Duration
	}{
		{0, 0, 0, keySpread}, {keySpread, 1, 0, keySpread * 3 / 2}, {2 * keySpread, 2, 0, keySpread + keyGrace},
		{keySpread + keyGrace, 2, 1, keySpread*3/2 + keyGrace}, {2*keySpread + keyGrace, 2, 2, -1},
	} {
		spoken, oldest, next := use(keys, begun.Add(c.after))
		if spoken != c.spoken || oldest != c.oldest || c.next >= 0 && !next.Equal(begun.Add(c.next)) || c.next < 0 && !next.IsZero() {
			t.Errorf("after %s: spoken %d, oldest %d, next %s", c.after, spoken, oldest, next.Sub(begun))
		}
	}
}

// TestStrangersFillNoRoster: who has the key and no certificate takes few places, gives
// way to the certified, and takes nothing from them.
func TestStrangersFillNoRoster(t *testing.T) {
	r := roster{}
	for i := range knownMax {
		r.live(idNamed(fmt.Sprint(i)), fmt.Sprint(i))
	}
	if _, err := r.hear(idNamed("late"), word{raw: "x"}); err == nil || len(r) != strangersMax {
		t.Errorf("those without certificate have %d places, and one more: %v", len(r), err)
	}
	good := certificate{sealed: "x", chain: signerOf("good", trust.RoleNode, "a").Chain, good: true}
	certify := func(i, want int) {
		t.Helper()
		if _, err := r.certify(idNamed(fmt.Sprint("good ", i)), good); err != nil || len(r) != want {
			t.Errorf("a member found no room: %v, %d places are taken", err, len(r))
		}
		r.live(idNamed(fmt.Sprint("good ", i)), "here")
	}
	for i := range knownMax - strangersMax {
		certify(i, strangersMax+i+1)
	}
	certify(-1, knownMax)
	if n := r.count(func(k *known) bool { return !k.cert.good }); n != strangersMax-1 {
		t.Errorf("%d strangers are left", n)
	}
}
