package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
)

// LoadTLS returns the configuration of a server that lets in, over TCP, clients which show a certificate of an
// authority: of ca-cert.pem in a folder, where server-cert.pem and server-key.pem are what the server shows, as qemu's
// tls-creds-x509 has them. The files are read again for each client, so that renewed ones need no restart.
func LoadTLS(dir string) (*tls.Config, error) {
	if _, err := readTLS(dir); err != nil {
		return nil, err
	}
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return readTLS(dir) }}, nil
}

func readTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("TLS of NBD: %w", err)
	}
	path := filepath.Join(dir, "ca-cert.pem")
	ca, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("TLS of NBD: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("TLS of NBD: %w: no certificate in %s", content.ErrInvalid, path)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, // the next client may find other files
	}, nil
}

// plain reports whether a client has still to begin TLS before anything else.
func (c *conn) plain() bool { return c.server.cfg.TLS != nil && half(c.socket) && c.stream == c.socket }

// startTLS goes on under TLS, as if nothing had been said before.
func (h *haggle) startTLS(o option) error {
	switch {
	case !h.plain():
		return h.refuse(o.code, repErrUnsup, "no TLS here, or no more of it: use the unix socket, or what is there")
	case len(o.data) > 0:
		return h.refuse(o.code, repErrInvalid, "takes no data")
	case h.in.buffered() > 0: // which somebody on the way may have put there
		return fmt.Errorf("%d bytes before TLS has begun: %w", h.in.buffered(), content.ErrInvalid)
	}
	if err := h.reply(o.code, repAck); err != nil {
		return err
	}
	s := tls.Server(h.socket, h.server.cfg.TLS)
	if err := s.HandshakeContext(h.ctx); err != nil {
		h.server.complaint.Do(func() {
			h.server.cfg.Log.Warn("nbd: a client is refused by TLS", "client", h.client(), "error", err)
		})
		return fmt.Errorf("TLS: %w", err)
	}
	h.stream, h.structured, h.meta, h.chosen = s, false, nil, nil
	h.in.close()
	h.in.open(s, nil, &h.server.buffers)
	h.out.open(s, nil, h.budget)
	return nil
}
