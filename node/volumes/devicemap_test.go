package volumes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func newMap(t *testing.T) *deviceMap {
	t.Helper()
	m, err := loadDeviceMap(filepath.Join(t.TempDir(), "volumes", "devices.json"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func all(m *deviceMap) map[string]entry { return *m.entries.Load() }

func names(m *deviceMap) (out []string) {
	for _, e := range m.sorted() {
		out = append(out, e.Name)
	}
	return out
}

func TestDeviceMapIsReadBack(t *testing.T) {
	m, number := newMap(t), 7
	for _, e := range []entry{{Name: "b", Disk: &number, Stage: ready}, {Name: "a"}, {Name: "c"}} {
		if err := m.put(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(m.remove("c"), m.remove("absent"), m.rename("a", entry{Name: "z"})); err != nil {
		t.Fatal(err)
	}
	again, err := loadDeviceMap(m.path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(names(again)); got != "[b z]" || *all(again)["b"].Disk != number || all(again)["b"].Stage != ready {
		t.Errorf("%s, %+v", got, all(again)["b"])
	}
}

// TestDeviceMapKeepsWhatItCannotSave changes a map whose folder takes no file.
func TestDeviceMapKeepsWhatItCannotSave(t *testing.T) {
	m := newMap(t)
	if err := m.put(entry{Name: "a", Size: 1}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(m.path)
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"put":    func() error { return m.put(entry{Name: "a", Size: 2}) },
		"new":    func() error { return m.put(entry{Name: "b"}) },
		"remove": func() error { return m.remove("a") },
		"rename": func() error { return m.rename("a", entry{Name: "b"}) },
	} {
		if err := change(); err == nil {
			t.Errorf("%s: no error", what)
		}
		if len(all(m)) != 1 || all(m)["a"].Size != 1 {
			t.Errorf("%s: the map is %+v", what, all(m))
		}
	}
}

func TestDeviceMapRefuses(t *testing.T) {
	m := newMap(t)
	if err := errors.Join(m.put(entry{Name: "a"}), m.put(entry{Name: "b"})); err != nil {
		t.Fatal(err)
	}
	if err := m.rename("a", entry{Name: "b"}); !errors.Is(err, content.ErrConflict) || len(all(m)) != 2 {
		t.Errorf("a name that is taken: %v, %v", err, names(m))
	}
	for i := range volumesMax {
		all(m)[fmt.Sprint(i)] = entry{Name: fmt.Sprint(i)}
	}
	if err := m.put(entry{Name: "one more"}); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("one more than the limit: %v", err)
	}
	for _, text := range []string{"", "{", `{"magic":"grange-devices/9"}`} {
		if err := os.WriteFile(m.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadDeviceMap(m.path); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestDeviceMapOfRestoredVolumes: volumes without the list of them, or with an empty or
// half one, are never none.
func TestDeviceMapOfRestoredVolumes(t *testing.T) {
	m := newMap(t)
	dir := filepath.Dir(m.path)
	if err := errors.Join(m.put(entry{Name: "a", Folder: "f1", Attached: true}), os.Mkdir(filepath.Join(dir, "f1"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if expected, err := Expected(dir); !expected || err != nil {
		t.Errorf("%v, %v", expected, err)
	}
	for what, harm := range map[string]func() error{
		"half": func() error { return os.Truncate(m.path, 30) }, "empty": func() error { return os.Truncate(m.path, 0) },
		"gone": func() error { return os.Remove(m.path) },
	} {
		err := harm()
		if _, got := Expected(dir); err != nil || !errors.Is(got, content.ErrCorrupt) || !strings.Contains(got.Error(), devicesFile) {
			t.Errorf("%s: %v, %v", what, err, got)
		}
		if err := m.save(all(m)); err != nil {
			t.Fatal(err)
		}
	}
	if expected, err := Expected(filepath.Join(dir, "none")); expected || err != nil {
		t.Errorf("%v, %v", expected, err)
	}
}
