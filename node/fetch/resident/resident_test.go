package resident

import (
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestTablesHoldWhatWasKept compares tables that share a clock with a map, and the
// number of values with the bound.
func TestTablesHoldWhatWasKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 20).Draw(t, "most")
		c := NewClock[int](most)
		tables := make([]Table[int], 3)
		kept := make([]map[uint64]int, len(tables))
		for i := range kept {
			kept[i] = map[uint64]int{}
		}
		for n := range rapid.IntRange(1, 200).Draw(t, "steps") {
			at := rapid.IntRange(0, len(tables)-1).Draw(t, "table")
			key := rapid.Uint64Range(0, 40).Draw(t, "key") << rapid.SampledFrom([]uint{0, 22, 48}).Draw(t, "shift")
			if rapid.Bool().Draw(t, "read") {
				tables[at].Get(key)
				continue
			}
			c.Keep(&tables[at], key, &n)
			kept[at][key] = n
			if got := tables[at].Peek(key); got != &n {
				t.Fatalf("key %d has %v, want %d", key, got, n)
			}
		}
		here := 0
		for i := range tables {
			for key, want := range kept[i] {
				if got := tables[i].Peek(key); got != nil {
					here++
					if *got != want {
						t.Fatalf("key %d has %d, want %d", key, *got, want)
					}
				}
			}
		}
		if here != len(c.ring) || here > most {
			t.Fatalf("%d values in the tables, %d in the clock, which is for %d", here, len(c.ring), most)
		}
	})
}

// TestReadersAmongChanges read without a lock while values come and go.
func TestReadersAmongChanges(t *testing.T) {
	c := NewClock[uint64](64)
	var table Table[uint64]
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range uint64(20_000) {
				if v := table.Get(i % 200); v != nil && *v != i%200 {
					t.Errorf("key %d has %d", i%200, *v)
				}
			}
		})
	}
	for i := range uint64(2_000) {
		key := i % 200
		c.Keep(&table, key, &key)
	}
	wg.Wait()
	if n := testing.AllocsPerRun(100, func() { table.Get(199) }); n > 0 {
		t.Errorf("a read allocates %v times", n)
	}
}

func BenchmarkGet(b *testing.B) {
	c := NewClock[int](1024)
	var table Table[int]
	for i := range 1024 {
		c.Keep(&table, 1<<48|uint64(i), &i)
	}
	i := uint64(0)
	for b.Loop() {
		if table.Get(1<<48|i%1024) == nil {
			b.Fatal("gone")
		}
		i++
	}
}
