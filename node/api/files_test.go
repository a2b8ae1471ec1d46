package api

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func TestTokenIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), TokenName)
	first, err := loadToken(path)
	if err != nil || len(first) < tokenMin {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := loadToken(path); again != first || err != nil {
		t.Errorf("%q, %v, want the first, %q", again, err, first)
	}
}

// TestTokenOfAnOperatorStays refuses one that is too short, and does not replace it.
func TestTokenOfAnOperatorStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), TokenName)
	for _, text := range []string{"", "short\n", strings.Repeat("x", tokenMin-1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadToken(path); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
		if b, err := os.ReadFile(path); string(b) != text || err != nil {
			t.Errorf("the file has %q now, %v; had %q", b, err, text)
		}
	}
}

// TestCertificateOfAnOperatorStays leaves one file of a pair alone.
func TestCertificateOfAnOperatorStays(t *testing.T) {
	dir := t.TempDir()
	if _, err := loadCertificate(dir, "127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	crt, key := filepath.Join(dir, CertificateName), filepath.Join(dir, certificateKeyName)
	before, err := os.ReadFile(crt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loadCertificate(dir, "127.0.0.1"); err != nil {
		t.Errorf("read again: %v", err)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := loadCertificate(dir, "127.0.0.1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the key: %v", err)
	}
	if after, err := os.ReadFile(crt); !bytes.Equal(after, before) || err != nil {
		t.Errorf("the certificate was replaced, %v", err)
	}
}
