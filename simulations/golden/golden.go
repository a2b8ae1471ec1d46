// Package golden holds formats to what they were: tests compare what is encoded
// with files in testdata, and begin their fuzzing with them.
package golden

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Rewrite reports whether the files are to be written anew, as GRANGE_REWRITE=1
// says: only when a format gets a new version.
func Rewrite() bool { return os.Getenv("GRANGE_REWRITE") == "1" }

// Check fails the test unless got is what the file of testdata holds.
func Check(t testing.TB, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if Rewrite() {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, name); !bytes.Equal(got, want) {
		t.Fatalf("%s: the format changed: got %d bytes\n%q\nwant %d\n%q", name, len(got), got, len(want), want)
	}
}

// Seeds adds files of testdata, whole and damaged.
func Seeds(f *testing.F, names ...string) {
	f.Helper()
	for _, name := range names {
		b := read(f, name)
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(bytes.Clone(b), 0))
		for i := 0; i < len(b); i += 1 + len(b)/16 {
			bad := bytes.Clone(b)
			bad[i] ^= 0xff
			f.Add(bad)
		}
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
