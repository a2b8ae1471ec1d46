package exchange

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// benchBytes is what each side of the comparison moves: 1 GiB.
const benchBytes = 1 << 30

const rawProtocol = "/raw"

// BenchmarkPull pulls 1 GiB, verified, and beside it pushes as much through one
// raw libp2p TLS stream, both ends in this process. The design asks for a ratio
// of at least 0.7 and at most 2.7 CPU seconds.
func BenchmarkPull(b *testing.B) {
	m := newMesh()
	l := newLibrary(m.root, 1024)
	server := m.start(b, trust.RoleNode, l.serve)
	client := m.start(b, trust.RoleNode, nil)
	connect(b, client.host, server.host)
	block := make([]byte, 256<<10)
	server.host.SetStreamHandler(rawProtocol, func(s network.Stream) {
		for range benchBytes / len(block) {
			if _, err := s.Write(block); err != nil {
				break
			}
		}
		s.Close()
	})
	var rawSeconds, seconds, rawCPU, cpu float64
	for b.Loop() {
		took, used := measure(func() { pullRaw(b, client, server) })
		rawSeconds, rawCPU = rawSeconds+took, rawCPU+used
		took, used = measure(func() { pull(b, client, server, l) })
		seconds, cpu = seconds+took, cpu+used
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(n*benchBytes/(1<<20)/seconds, "MiB/s")
	b.ReportMetric(n*benchBytes/(1<<20)/rawSeconds, "raw-MiB/s")
	b.ReportMetric(rawSeconds/seconds, "ratio")
	b.ReportMetric(cpu/n, "CPU-s/GiB")
	b.ReportMetric(rawCPU/n, "raw-CPU-s/GiB")
}

// measure returns the wall and CPU seconds that f takes.
func measure(f func()) (wall, cpu float64) {
	begun, before := time.Now(), cpuSeconds()
	f()
	return time.Since(begun).Seconds(), cpuSeconds() - before
}

func pullRaw(b *testing.B, client, server *member) {
	s, err := client.host.NewStream(b.Context(), server.id, rawProtocol)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Reset()
	buf := make([]byte, 256<<10)
	for total := 0; total < benchBytes; {
		n, err := s.Read(buf)
		if total += n; err != nil && total < benchBytes {
			b.Fatal(err)
		}
		if err == io.EOF {
			break
		}
	}
}

// pull asks for runs of 8 chunks, 64 of them at a time, and verifies each chunk.
func pull(b *testing.B, client, server *member, l *library) {
	const run, open = 8, 64
	places := make(chan struct{}, open)
	var wg sync.WaitGroup
	for i := range benchBytes / content.ChunkSizeDefault / run {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			req := Request{Root: l.root, Indexes: indexes(uint64(i*run%len(l.chunks)), run), Priority: PriorityPrefetch}
			err := client.Want(b.Context(), server.id, req, func(r Reply) {
				if d, ok := r.(*Data); ok {
					if _, err := content.Verify(l.chunks[d.Index].CID(), d.Body); err != nil {
						b.Error(err)
					}
				}
			})
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkFault reads chunks one at a time as a blocked guest does, alone and
// beside a bulk prefetch. The design asks for p50 within 1 ms and p99 within
// 10 ms alone, 20 ms beside.
func BenchmarkFault(b *testing.B) {
	for _, beside := range []bool{false, true} {
		name := map[bool]string{false: "alone", true: "beside prefetch"}[beside]
		b.Run(name, func(b *testing.B) {
			m := newMesh()
			l := newLibrary(m.root, 1024)
			server := m.start(b, trust.RoleNode, l.serve)
			client := m.start(b, trust.RoleNode, nil)
			connect(b, client.host, server.host)
			if beside {
				defer prefetch(b, client, server, l)()
			}
			var took []time.Duration
			for b.Loop() {
				begun := time.Now()
				fault(b, client, server, l, uint64(len(took)*37%len(l.chunks)))
				took = append(took, time.Since(begun))
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1e3, "p50-ms")
			b.ReportMetric(took[len(took)*99/100].Seconds()*1e3, "p99-ms")
			b.ReportMetric(took[len(took)-1].Seconds()*1e3, "max-ms")
		})
	}
}

func fault(b *testing.B, client, server *member, l *library, index uint64) {
	req := Request{Root: l.root, Indexes: []uint64{index}, Priority: PriorityGuest}
	err := client.Want(b.Context(), server.id, req, func(r Reply) {
		if d, ok := r.(*Data); ok {
			if _, err := content.Verify(l.chunks[index].CID(), d.Body); err != nil {
				b.Error(err)
			}
		}
	})
	if err != nil {
		b.Error(err)
	}
}

// prefetch keeps the link full until the returned function is called.
func prefetch(b *testing.B, client, server *member, l *library) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for n := i * 8; ctx.Err() == nil; n += 8 {
				req := Request{Root: l.root, Indexes: indexes(uint64(n%len(l.chunks)), 8), Priority: PriorityPrefetch}
				_ = client.Want(ctx, server.id, req, func(r Reply) {
					if d, ok := r.(*Data); ok {
						if _, err := content.Verify(l.chunks[d.Index].CID(), d.Body); err != nil {
							b.Error(err)
						}
					}
				})
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}
