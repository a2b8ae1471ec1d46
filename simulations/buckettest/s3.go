// Package buckettest starts a real S3 server for whoever needs one.
package buckettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

const (
	// gateway is the S3 server of the tests, at its version: strict about
	// signatures, conditions and ranges, and one binary.
	gateway        = "github.com/versity/versitygw/cmd/versitygw"
	gatewayVersion = "v1.8.0"

	// startWithin is how long the server may take to answer, on a busy machine.
	startWithin = 30 * time.Second
	// startTries: another process may take the port that was found free.
	startTries = 3
)

// S3 is a running S3 server with one empty bucket.
type S3 struct {
	// Endpoint is its base URL, http://127.0.0.1:PORT; Region what it signs for.
	Endpoint, Region string
	Bucket           string
	// AccessKey and SecretKey may do everything.
	AccessKey, SecretKey string

	t   testing.TB
	dir string // which holds the buckets' objects as files
	cmd *exec.Cmd
	log *bytes.Buffer // to be read when the process has ended
	end chan struct{} // closed when the process has ended
}

// URL is what --origin takes for a prefix of the bucket, "" for all of it.
func (s *S3) URL(prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=%s&path-style=true", s.Bucket, prefix, s.Endpoint, s.Region)
}

// Setenv gives this test's process the credentials, where the AWS chain looks.
func (s *S3) Setenv(t testing.TB) {
	t.Setenv("AWS_ACCESS_KEY_ID", s.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.SecretKey)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// Dir is the folder that the objects of the bucket lie in as files.
func (s *S3) Dir() string { return filepath.Join(s.dir, s.Bucket) }

// StartS3 starts a real S3 server on loopback, which ends with the test. The
// first use on a machine builds it, some minutes.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	binary, err := Gateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &S3{Region: "us-east-1", Bucket: "grange", AccessKey: "grange-test", SecretKey: "grange-test-secret", t: t, dir: t.TempDir()}
	if err := os.Mkdir(s.Dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	for range startTries {
		if err = s.start(binary); err == nil {
			t.Cleanup(s.Stop)
			return s
		}
	}
	t.Fatalf("the S3 server %s did not start: %v; try it by hand, or remove it so that it is built again", binary, err)
	return nil
}

// Gateway returns the path of the S3 server's binary, built and kept in the
// user's cache folder.
func Gateway(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("the S3 server of the tests is kept in the user's cache folder: %w; set HOME", err)
	}
	dir := filepath.Join(cache, "grange-test", "versitygw-"+gatewayVersion)
	binary := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build the S3 server of the tests: %w", err)
	}
	fresh, err := os.MkdirTemp(dir, "build-") // two test binaries may be at it at once
	if err != nil {
		return "", fmt.Errorf("build the S3 server of the tests: %w", err)
	}
	defer os.RemoveAll(fresh)
	cmd := exec.CommandContext(ctx, "go", "install", gateway+"@"+gatewayVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+fresh, "GOFLAGS=")
	cmd.Dir = fresh // outside of the module, so that it brings its own dependencies
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the S3 server of the tests: %w: %s; the tests need it: make `GOBIN=%s go install %s@%s` succeed", err, out, dir, gateway, gatewayVersion)
	}
	if err := os.Rename(filepath.Join(fresh, "versitygw"), binary); err != nil {
		return "", fmt.Errorf("build the S3 server of the tests: %w", err)
	}
	return binary, nil
}

// start runs the server on a free port and waits until it takes connections.
func (s *S3) start(binary string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	s.Endpoint, s.log, s.end = "http://"+address, new(bytes.Buffer), make(chan struct{})
	s.cmd = exec.Command(binary, "--port", address, "--quiet", "posix", s.dir)
	s.cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	started := make(chan error)
	go s.run(started)
	if err := <-started; err != nil {
		return err
	}
	return s.await(address)
}

// run starts the server and waits for its end. It dies with this process, even when that
// is killed: the kernel means the thread that started it, which is held until then.
func (s *S3) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(s.end)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := s.cmd.Start()
	started <- err
	if err == nil {
		_ = s.cmd.Wait() // it is killed, which is no news
	}
}

// await waits for the server to listen.
func (s *S3) await(address string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(startWithin)
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-s.end:
			return fmt.Errorf("it ended: %s", s.log)
		case <-deadline:
			s.Stop()
			return errors.Join(fmt.Errorf("it does not listen after %s: %s", startWithin, s.log), err)
		}
	}
}

// Stop kills the server, as an outage would; again is a no-op.
func (s *S3) Stop() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("stop the S3 server: %v", err)
	}
	<-s.end
}
