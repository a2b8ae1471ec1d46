package foreign

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// swapped is a file whose header is another one after the first look.
type swapped struct {
	*io.SectionReader
	first []byte
}

func (s *swapped) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.SectionReader.ReadAt(p, off)
	if s.first != nil && off == 0 {
		copy(p, s.first)
		s.first = nil
	}
	return n, err
}

// TestHeaderThatChanges: who writes an image while it is imported gets no file of the
// host read by that.
func TestHeaderThatChanges(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the child is nobody
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret, path := filepath.Join(dir, "secret"), filepath.Join(dir, "image")
	word := bytes.Repeat([]byte("of the host "), 100)
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+secret+",data_file_raw=on", path, "1M").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(secret, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(word, 0)
	}
	if err = errors.Join(err, f.Close(), os.Chmod(secret, 0o644)); err != nil {
		t.Fatal(err)
	}
	evil, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	info, err := evil.Stat()
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, headerSize)
	if _, err := evil.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	first[79] &^= 4 // no other file
	d, err := Open(t.Context(), &swapped{io.NewSectionReader(evil, 0, info.Size()), first}, "qcow2", func(text string) { t.Error(text) })
	if err != nil {
		return // it was refused
	}
	p := make([]byte, 4096)
	_, err = d.ReadAt(p, 0)
	if err == nil && bytes.Contains(p, word[:20]) {
		t.Error("the child has read a file of the host")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
