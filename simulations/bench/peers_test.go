package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

// The parts that this binary plays when partEnv names one; rolesEnv has its role
// as JSON.
const (
	partEnv = "GRANGE_BENCH_PART"
	roleEnv = "GRANGE_BENCH_ROLE"

	rawServe = "raw-serve"
	rawPull  = "raw-pull"
	s3Put    = "s3-put"
	s3Get    = "s3-get"
)

// role is what a part is told.
type role struct {
	// Address is where it listens, or whom it pulls from.
	Address string
	// Store is an origin URL; File is put there as Key, or made from it.
	Store, Key, File string
	Size             int64
}

// play plays a part and returns the exit code. A part that pulls prints how many
// seconds it took, without its own start.
func play(part string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var r role
	err := json.Unmarshal([]byte(os.Getenv(roleEnv)), &r)
	if err == nil {
		err = map[string]func(context.Context, role) error{
			rawServe: serveRaw, rawPull: pullRaw, s3Put: putS3, s3Get: getS3,
		}[part](ctx, r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, part, err)
		return 1
	}
	return 0
}

func timed(f func() error) error {
	start := time.Now()
	err := f()
	fmt.Println(time.Since(start).Seconds())
	return err
}

const rawProtocol = "/bench/raw"

func newHost(listen ...string) (*swarm.Swarm, error) {
	s, err := swarm.New(swarm.Config{Identity: trust.NewPrivateKey(), Mesh: trust.NewPrivateKey().Public(), Listen: listen})
	if err != nil {
		return nil, err
	}
	return s, s.Listen()
}

// serveRaw writes as many bytes into each stream as the role says.
func serveRaw(ctx context.Context, r role) error {
	s, err := newHost(r.Address)
	if err != nil {
		return err
	}
	block := make([]byte, 256<<10)
	s.Host().SetStreamHandler(rawProtocol, func(stream network.Stream) {
		for left := r.Size; left > 0; left -= int64(len(block)) {
			if _, err := stream.Write(block[:min(left, int64(len(block)))]); err != nil {
				break
			}
		}
		stream.Close()
	})
	fmt.Println(s.Addrs()[0])
	<-ctx.Done()
	return s.Close()
}

func pullRaw(ctx context.Context, r role) error {
	s, err := newHost()
	if err != nil {
		return err
	}
	defer s.Close()
	info, err := swarm.ParseAddr(r.Address)
	if err != nil {
		return err
	}
	if err := s.Connect(ctx, info); err != nil {
		return err
	}
	return timed(func() error {
		stream, err := s.Host().NewStream(ctx, info.ID, rawProtocol)
		if err != nil {
			return err
		}
		n, err := io.CopyBuffer(io.Discard, stream, make([]byte, 256<<10))
		if n != r.Size {
			err = errors.Join(err, io.ErrUnexpectedEOF)
		}
		return err
	})
}

func openStore(ctx context.Context, r role) (bucket.Bucket, error) {
	location, err := s3.ParseURL(r.Store)
	if err != nil {
		return nil, err
	}
	return s3.Open(ctx, s3.Config{Location: location})
}

func putS3(ctx context.Context, r role) error {
	store, err := openStore(ctx, r)
	if err != nil {
		return err
	}
	f, err := os.Open(r.File)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = store.Put(ctx, r.Key, io.NewSectionReader(f, 0, r.Size), bucket.Condition{})
	return err
}

const (
	// s3Part and s3AtOnce are what the SDK's own download manager does best with.
	s3Part   = 8 << 20
	s3AtOnce = 8
)

// getS3 downloads an object by ranges into a file.
func getS3(ctx context.Context, r role) error {
	store, err := openStore(ctx, r)
	if err != nil {
		return err
	}
	f, err := os.Create(r.File)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(r.Size); err != nil {
		return err
	}
	return timed(func() error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(s3AtOnce)
		for at := int64(0); at < r.Size; at += s3Part {
			group.Go(func() error {
				o, err := store.Get(ctx, r.Key, bucket.Range{Offset: at, Length: min(s3Part, r.Size-at)})
				if err != nil {
					return err
				}
				defer o.Body.Close()
				_, err = io.Copy(io.NewOffsetWriter(f, at), o.Body)
				return err
			})
		}
		return group.Wait()
	})
}
