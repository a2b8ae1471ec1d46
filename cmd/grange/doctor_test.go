//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/cmd/grange/doctor"
)

// TestDoctorFindsWhatIsBroken: each thing alone makes it exit with 1, and is named; with
// nothing broken it exits with 0.
func TestDoctorFindsWhatIsBroken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late/grange.json" || r.URL.Path == "/late" {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		}
		w.WriteHeader(map[bool]int{true: http.StatusForbidden, false: http.StatusNotFound}[strings.Contains(r.URL.Path, "closed")])
	}))
	defer store.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	alone := serveAt(t, answer(`{"ready": true, "origin": {"state": "ok"}}`))
	seed := serveAt(t, answer(`{"ready": true, "origin": {"state": "none"}, "seed": {"state": "serving"}}`))
	waits := serveAt(t, answer(`{"waiting": ["its volumes"], "origin": {"state": "unreachable", "detail": "no route"}}`))
	t.Setenv("GRANGE_LISTEN", "/ip4/127.0.0.1/tcp/0")
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	s3 := "s3://bucket/%s?region=x&path-style=true&endpoint=" + store.URL
	for _, x := range []struct {
		what, data string
		env        map[string]string
	}{
		{"", "", nil},
		{"", seed, nil},
		{"", alone, map[string]string{"GRANGE_ORIGIN": fmt.Sprintf(s3, "closed")}},
		{"ports", "", map[string]string{"GRANGE_LISTEN": "/ip4/127.0.0.1/tcp/" + port}},
		{"ports", "", map[string]string{"GRANGE_API": "", "GRANGE_FARM_BIND": taken.Addr().String()}},
		{"nbd", "", map[string]string{"GRANGE_NBD": "0.0.0.0:10809"}},
		{"disk", "", map[string]string{"GRANGE_QUOTA": "900T"}},
		{"data folder", file, nil},
		{"clock", "", map[string]string{"GRANGE_ORIGIN": store.URL + "/late"}},
		{"credentials", "", map[string]string{"GRANGE_ORIGIN": fmt.Sprintf(s3, "closed")}},
		{"store", "", map[string]string{"GRANGE_ORIGIN": "s3://bucket?region=x&endpoint=http://127.0.0.1:1"}},
		{"config", "", map[string]string{"GRANGE_QUOTA": "5"}},
		{"farm", alone, map[string]string{"GRANGE_FARM_JOIN": "10.0.0.9:7946"}},
		{"node", waits, nil},
		{"origin", waits, nil},
	} {
		t.Run(x.what, func(t *testing.T) {
			for name, value := range x.env {
				t.Setenv(name, value)
			}
			if x.data == "" {
				x.data = filepath.Join(t.TempDir(), "new")
			}
			code, out, complaint := command(t, "doctor", "--json", "--data", x.data)
			var findings []doctor.Finding
			if err := json.Unmarshal([]byte(out), &findings); err != nil {
				t.Fatalf("%v: %s%s", err, out, complaint)
			}
			found, said := x.what == "", map[doctor.Finding]bool{}
			for _, f := range findings {
				if said[f] {
					t.Errorf("twice: %v", f)
				}
				said[f] = true
				found = found || f.What == x.what && f.Mark == doctor.Bad
			}
			if want := map[bool]int{true: 0, false: 1}[x.what == ""]; code != want || !found {
				t.Errorf("code %d: %s", code, out)
			}
		})
	}
}
