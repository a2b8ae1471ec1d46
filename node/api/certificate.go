package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/origin/content/durable"
)

// CertificateName and certificateKeyName are the files of the API's TLS
// certificate. An operator may put a certificate of their own there; without
// one the node signs its own at the first start, which clients pin.
const (
	CertificateName    = "api.crt"
	certificateKeyName = "api.key"
)

// certificateLifetime of the certificate that a node signs for itself. It is
// pinned by its clients, so its age protects nobody.
const certificateLifetime = 20 * 365 * 24 * time.Hour

func loadCertificate(dir, host string) (cert tls.Certificate, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("API certificate: %w", err)
		}
	}()
	crt, key := filepath.Join(dir, CertificateName), filepath.Join(dir, certificateKeyName)
	if exists(crt) || exists(key) { // of one alone, an operator's, the error says that the other is missing
		return tls.LoadX509KeyPair(crt, key)
	}
	crtPEM, keyPEM, err := selfSign(host)
	if err == nil { // a crash between the two leaves a key alone, which the next start asks about
		err = errors.Join(durable.WriteFile(key, keyPEM, 0o600), durable.WriteFile(crt, crtPEM, 0o644))
	}
	if err != nil {
		return cert, err
	}
	return tls.X509KeyPair(crtPEM, keyPEM)
}

// exists is true too for what can't be looked at.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func selfSign(host string) (crtPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "grange node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(certificateLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	name, err := os.Hostname()
	if err == nil {
		t.DNSNames = append(t.DNSNames, name)
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		t.IPAddresses = append(t.IPAddresses, ip)
	} else if host != "" && ip == nil {
		t.DNSNames = append(t.DNSNames, host)
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				t.IPAddresses = append(t.IPAddresses, n.IP)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
