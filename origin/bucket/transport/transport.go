// Package transport holds what buckets over HTTP share: connections that notice a stall, and ranges.
package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// connsMax bounds the connections to one host: a node reads some runs at
	// once, and an importer uploads some packs.
	connsMax = 64
	// dialTimeout bounds connecting, and the TLS handshake after it.
	dialTimeout = 5 * time.Second
	// stallMax is how long a connection may stand still, in either direction or
	// while the server thinks. A slow line is not a dead one.
	stallMax = 30 * time.Second
	// keepAlive is the pause between two probes of a silent peer.
	keepAlive = 15 * time.Second
	// sendBuffer of a connection: some large writes instead of many of 4 KiB. What is read
	// in larger pieces than receiveBuffer goes past that.
	sendBuffer, receiveBuffer = 256 << 10, 16 << 10
)

// Tune sets up t for buckets: many connections to one host, each of which fails once it stands still. HTTP/2
// is left out, as one connection would bound the rate of all.
func Tune(t *http.Transport) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return conn{c}, nil
	}
	t.ForceAttemptHTTP2 = false
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = 2*connsMax, connsMax, connsMax
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout, t.IdleConnTimeout = dialTimeout, stallMax, stallMax
	t.WriteBufferSize, t.ReadBufferSize, t.DisableCompression = sendBuffer, receiveBuffer, true
}

// conn is a connection whose deadline moves on with each sign of progress.
type conn struct{ net.Conn }

func (c conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(stallMax)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write moves the reader's deadline too: while a request is being sent no answer is due.
func (c conn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(stallMax)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// wholeMax bounds what is kept in memory of an answer that does not say how long it is: any pack.
const wholeMax = 64 << 20

// Open returns the body of an answer to a request for r, and the size of the object: the answer says what
// part it is, and how long, -1 if it does not. That a body of unknown length, which some servers send, is all
// of the object its reader knows by the content. With an error the body is closed.
func Open(r bucket.Range, contentRange string, length int64, body io.ReadCloser) (io.ReadCloser, int64, error) {
	size := length
	var err error
	switch ranged := r != (bucket.Range{}); {
	case ranged && contentRange == "" && length == 0:
		err = fmt.Errorf("range of an empty object: %w", content.ErrInvalid)
	case ranged:
		length, size, err = part(r, contentRange)
	case length < 0:
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(body, wholeMax+1)); err != nil || len(b) > wholeMax {
			err = fmt.Errorf("%w: the server does not say how long the object is, and %d bytes came: %w", content.ErrUnavailable, len(b), err)
			break
		}
		body.Close() // at its end
		return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
	}
	if err != nil {
		return nil, 0, errors.Join(err, body.Close())
	}
	return bucket.Exactly(body, length), size, nil
}

// Header returns the Range header that asks for r, or "" for all of an object.
func Header(r bucket.Range) (string, error) {
	switch {
	case r.Length < 0:
		return "", fmt.Errorf("range of %d bytes: %w", r.Length, content.ErrInvalid)
	case r.Offset < 0:
		return fmt.Sprintf("bytes=%d", r.Offset), nil
	case r.Length > 0:
		return fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1), nil
	case r.Offset > 0:
		return fmt.Sprintf("bytes=%d-", r.Offset), nil
	}
	return "", nil
}

// part checks a Content-Range against the range that was asked for. It returns
// how many bytes of the reply belong to it, and the size of the whole object.
func part(r bucket.Range, contentRange string) (length, size int64, err error) {
	if contentRange == "" {
		return 0, 0, fmt.Errorf("the server ignores ranges, which packs are read by; use one that honours them: %w", errors.ErrUnsupported)
	}
	var first, last int64
	if _, err := fmt.Sscanf(contentRange, "bytes %d-%d/%d", &first, &last, &size); err != nil {
		return 0, 0, fmt.Errorf("content range %.80q: %w: %w", contentRange, content.ErrUnavailable, err)
	}
	off, length, err := r.Within(size)
	if err != nil || first != off || last-first+1 < length {
		return 0, 0, fmt.Errorf("content range %.80q for %d+%d: %w", contentRange, r.Offset, r.Length, content.ErrUnavailable)
	}
	return length, size, nil
}
