//go:build linux || darwin

package nbd_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/origin/content"
)

const errTLSRequired = 1<<31 + 5

// authority signs certificates for tests, and writes them as qemu wants them.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue writes a folder of one end: server or client.
func (a *authority) issue(t *testing.T, dir, end string) string {
	t.Helper()
	key := newKey(t)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: end}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem": {Type: "CERTIFICATE", Bytes: a.cert.Raw}, end + "-cert.pem": {Type: "CERTIFICATE", Bytes: der}, end + "-key.pem": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// serveTLS serves a sparse disk and an empty one over TCP with TLS.
func serveTLS(t *testing.T) (from, to *memory, address *net.TCPAddr, clients string) {
	t.Helper()
	a := newAuthority(t)
	conf, err := nbd.LoadTLS(a.issue(t, t.TempDir(), "server"))
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := nbd.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	from, to = sparse(), newMemory(realSize)
	start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"from": from, "to": to}), Listeners: []net.Listener{tcp}, TLS: conf}, "")
	return from, to, tcp.Addr().(*net.TCPAddr), a.issue(t, t.TempDir(), "client")
}

// TestRealClientsOverTLS copy there and back, with qemu and with libnbd.
func TestRealClientsOverTLS(t *testing.T) {
	from, to, address, clients := serveTLS(t)
	want := fmt.Sprintf("%x", sha256.Sum256(from.data))
	uri := func(name string) string {
		return fmt.Sprintf("nbds://%s/%s?tls-certificates=%s", address, name, clients)
	}
	path := filepath.Join(t.TempDir(), "copy")
	command(t, "libnbd-bin", "nbdcopy", uri("from"), path)
	if sum(t, path) != want {
		t.Error("nbdcopy: other bytes")
	}
	command(t, "libnbd-bin", "nbdcopy", path, uri("to"))
	if !to.equal(from.data) {
		t.Error("nbdcopy back: other bytes")
	}
	if out := command(t, "libnbd-bin", "nbdinfo", "--list", uri("")); !bytes.Contains(out, []byte("TLS")) || !bytes.Contains(out, []byte(`"from"`)) {
		t.Errorf("nbdinfo: %s", out)
	}
	to.Zero(t.Context(), 0, realSize, false, false)
	creds := []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + clients}
	image := func(name string) string {
		return fmt.Sprintf("driver=nbd,host=127.0.0.1,port=%d,export=%s,tls-creds=t", address.Port, name)
	}
	command(t, "qemu-utils", "qemu-img", append([]string{"convert", "-n", "--image-opts", "--target-image-opts"}, append(creds, image("from"), "driver=raw,file."+strings.ReplaceAll(image("to"), ",", ",file."))...)...)
	if !to.equal(from.data) {
		t.Error("qemu-img: other bytes")
	}
	command(t, "qemu-utils", "qemu-io", append(creds, "--image-opts", image("to"), "-c", "write -P 7 4k 4k", "-c", "flush", "-c", "read -P 7 4k 4k")...)
	if to.data[4096] != 7 {
		t.Error("qemu-io wrote nothing")
	}
}

// TestWhoComesWithoutTLS learns nothing: nor who shows no certificate, or another's.
func TestWhoComesWithoutTLS(t *testing.T) {
	_, _, address, _ := serveTLS(t)
	plain := nbd.URI(address, "from")
	c := greet(t, plain)
	for _, code := range []uint32{optList, optInfo, optGo, optStructured, optListMeta, optSetMeta, 99} {
		if got := c.option(code, nil); got[0].kind != errTLSRequired {
			t.Errorf("option %d: %v", code, got)
		}
	}
	c.send("IHAVEOPT", uint32(optExportName), uint32(4), "from")
	c.ended()
	early := greet(t, plain)
	early.send("IHAVEOPT", uint32(optStartTLS), uint32(0), "IHAVEOPT", uint32(optList), uint32(0))
	early.ended()
	stranger := newAuthority(t).issue(t, t.TempDir(), "client")
	for _, uri := range []string{plain, fmt.Sprintf("nbds://%s/from?tls-certificates=%s", address, stranger)} {
		if out, err := exec.Command(tool(t, "nbdinfo", "libnbd-bin"), uri).CombinedOutput(); err == nil {
			t.Errorf("%s: %s", uri, out)
		}
	}
	bare := greet(t, plain)
	bare.mustOption(optStartTLS)
	s := tls.Client(bare.conn, &tls.Config{InsecureSkipVerify: true})
	if _, err := s.Write(pack("IHAVEOPT", uint32(optList), uint32(0))); err == nil {
		if n, err := s.Read(make([]byte, 1)); err == nil {
			t.Errorf("without a certificate: %d bytes", n)
		}
	}
	c = greet(t, plain) // which goes on for others
	c.mustOption(optAbort)
}

// TestTLSFilesThatCannotWork are found at once, with their names.
func TestTLSFilesThatCannotWork(t *testing.T) {
	whole := newAuthority(t).issue(t, t.TempDir(), "server")
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "x"), os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(dir, "x")
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := nbd.LoadTLS(dir); err == nil {
			t.Errorf("a bad %s is taken", name)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := nbd.LoadTLS(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
	}
	if err := nbd.CheckSocketPath("/" + strings.Repeat("x", nbd.SocketPathMax)); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a long path: %v", err)
	}
}
