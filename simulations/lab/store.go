package lab

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	storePort     = 7070
	storeUser     = "grange"
	storePassword = "grange-test-secret"
	storeBucket   = "images"
	storeTimeout  = 15 * time.Second
)

// Store is a real S3 server on a host of the lab.
type Store struct {
	// URL is what --origin takes.
	URL string

	lab  *Lab
	host *netns.Host
	dir  string
}

// StartStore builds the server if need be, some minutes the first time, and
// starts it on a LAN of its own with an empty bucket, behind the lab's line if there is one.
func (l *Lab) StartStore(ctx context.Context) (*Store, error) {
	host, err := l.host(ctx, "store")
	if err != nil {
		return nil, err
	}
	s := &Store{lab: l, host: host, dir: filepath.Join(l.Dir, "store")}
	s.URL = storeURL(storeBucket, fmt.Sprintf("%s:%d", host.Addr(), storePort))
	l.Env = append(l.Env, "AWS_ACCESS_KEY_ID="+storeUser, "AWS_SECRET_ACCESS_KEY="+storePassword, "AWS_EC2_METADATA_DISABLED=true")
	if err := os.MkdirAll(filepath.Join(s.dir, storeBucket), 0o755); err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// Start starts the server, which must not run.
func (s *Store) Start(ctx context.Context) error {
	binary, err := buckettest.Gateway(ctx)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.lab.Dir, "store.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	address := fmt.Sprintf("%s:%d", s.host.Addr(), storePort)
	// By itself it ends the connection with each answer, which S3 does not.
	cmd := s.host.Command(context.WithoutCancel(ctx), binary, "--port", address, "--quiet", "--keep-alive", "posix", s.dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+storeUser, "ROOT_SECRET_KEY="+storePassword)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.lab.store = cmd
	return s.await(ctx)
}

// await waits until the server takes connections.
func (s *Store) await(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		c, err := s.host.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", s.host.Addr(), storePort))
		if err == nil {
			err = c.Close()
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(50*time.Millisecond)), backoff.WithMaxElapsedTime(storeTimeout))
	if err != nil {
		return fmt.Errorf("the S3 server does not answer: %w", err)
	}
	return nil
}

// Files returns the paths of the store's files under a prefix of its keys: what
// is flipped there is what a rotten disk of the store would flip.
func (s *Store) Files(prefix string) ([]string, error) {
	root := filepath.Join(s.dir, storeBucket, storePrefix)
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		key, _ := filepath.Rel(root, path)
		if err == nil && d.Type().IsRegular() && strings.HasPrefix(filepath.ToSlash(key), prefix) {
			out = append(out, path)
		}
		return err
	})
	return out, err
}

// narrowBurst is what a narrowed store may send at once.
const narrowBurst = 256 << 10

// Narrow bounds what the store's host sends, in bytes a second.
func (s *Store) Narrow(ctx context.Context, rate int) error { return Narrow(ctx, s.host, rate) }

// Narrow bounds what a host sends, in bytes a second.
func Narrow(ctx context.Context, host *netns.Host, rate int) error {
	out, err := host.Command(ctx, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", fmt.Sprintf("%dbit", 8*rate), "burst", fmt.Sprint(narrowBurst), "latency", "100ms").CombinedOutput()
	if err != nil {
		return fmt.Errorf("narrow %s: %w: %s", host.Addr(), err, out)
	}
	return nil
}

// Unplug lets what is sent to the server be lost, without a word.
func (s *Store) Unplug(ctx context.Context) error { return s.host.Unplug(ctx) }

// Plug undoes Unplug.
func (s *Store) Plug(ctx context.Context) error { return s.host.Plug(ctx) }

// Stop ends the server, as an outage would.
func (s *Store) Stop() error {
	if s.lab.store == nil {
		return nil
	}
	err := s.lab.store.Process.Kill()
	s.lab.store.Wait() // it was killed, which is no news
	s.lab.store = nil
	return err
}
