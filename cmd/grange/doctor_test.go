//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/cmd/grange/doctor"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/buckettest"
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
		if _, asked := r.URL.Query()["lifecycle"]; asked {
			io.WriteString(w, `<LifecycleConfiguration><Rule><ID>old</ID><Status>Enabled</Status><Filter><Prefix>expires/</Prefix></Filter><Expiration><Days>30</Days></Expiration></Rule>`+
				`<Rule><ID>uploads</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>`)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/bucket/") && !strings.Contains(r.URL.Path, "closed") {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return
		}
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
	token := func(good time.Duration) string {
		path := filepath.Join(t.TempDir(), "token")
		made := trust.Token{Bootstrap: []string{"/ip4/127.0.0.1/tcp/1"}, Role: trust.RoleNode, Expires: time.Now().Add(good).Unix()}
		if err := os.WriteFile(path, []byte(made.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return "@" + path
	}
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
		{"lifecycle", "", map[string]string{"GRANGE_ORIGIN": fmt.Sprintf(s3, "expires")}},
		{"lifecycle", alone, map[string]string{"GRANGE_ORIGIN": fmt.Sprintf(s3, "expires/below")}},
		{"", "", map[string]string{"GRANGE_ORIGIN": fmt.Sprintf(s3, "stays")}},
		{"names", "", map[string]string{"GRANGE_FARM_BIND": "127.0.0.1:0", "GRANGE_FARM_JOIN": "no-such-host.invalid:7946"}},
		{"names", "", map[string]string{"GRANGE_BOOTSTRAP": "/dns4/no-such-host.invalid/tcp/4001/p2p/12D3KooWDcT6bD8q4EMcgTVKFGfJvvY1eYytUEgSPYio1nupBTeZ"}},
		{"join", "", map[string]string{"GRANGE_JOIN": token(-time.Hour)}},
		{"join", "", map[string]string{"GRANGE_JOIN": token(time.Hour)}},
		{"join", "", map[string]string{"GRANGE_JOIN": "@/no/such/file"}},
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
				if (f.Mark == doctor.Bad || f.Mark == doctor.Warn) && f.Mend == "" {
					t.Errorf("nothing is said to mend %v", f)
				}
				found = found || f.What == x.what && f.Mark == doctor.Bad
			}
			if want := map[bool]int{true: 0, false: 1}[x.what == ""]; code != want || !found {
				t.Errorf("code %d: %s", code, out)
			}
		})
	}
}

// TestDoctorAsksTheStore: a real one, with what operators give it.
func TestDoctorAsksTheStore(t *testing.T) {
	s := buckettest.StartS3(t)
	s.Setenv(t)
	t.Setenv("GRANGE_LISTEN", "/ip4/127.0.0.1/tcp/0")
	for _, x := range []struct {
		what, mend, id, secret, url string
	}{
		{"", "", s.AccessKey, s.SecretKey, s.URL("x")},
		{"credentials", "printf", "", "", s.URL("x")},
		{"credentials", "AWS_SECRET_ACCESS_KEY", s.AccessKey, "another", s.URL("x")},
		{"credentials", "AWS_ACCESS_KEY_ID", "another", s.SecretKey, s.URL("x")},
		{"store", "aws s3 mb", s.AccessKey, s.SecretKey, strings.Replace(s.URL("x"), s.Bucket, "nobodys", 1)},
		{"store", "region=", s.AccessKey, s.SecretKey, strings.Replace(s.URL("x"), s.Region, "elsewhere", 1)},
		{"store", "curl", s.AccessKey, s.SecretKey, "s3://b?region=x&path-style=true&endpoint=http://127.0.0.1:1"},
	} {
		t.Setenv("AWS_ACCESS_KEY_ID", x.id)
		t.Setenv("AWS_SECRET_ACCESS_KEY", x.secret)
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
		t.Setenv("GRANGE_ORIGIN", x.url)
		code, out, complaint := command(t, "doctor", "--json", "--data", filepath.Join(t.TempDir(), "new"))
		var findings []doctor.Finding
		if err := json.Unmarshal([]byte(out), &findings); err != nil {
			t.Fatalf("%v: %s", err, complaint)
		}
		found := x.what == ""
		for _, f := range findings {
			found = found || f.What == x.what && f.Mark == doctor.Bad && strings.Contains(f.Mend, x.mend)
		}
		if !found || (code == 0) != (x.what == "") {
			t.Errorf("%+v: code %d, %s", x, code, out)
		}
	}
}

// examined runs a doctor as a command under another one, and returns its code and its findings by what they are of.
func examined(t *testing.T, program, data string, under ...string) (code int, found map[string]doctor.Finding) {
	t.Helper()
	words := append(under, program, "doctor", "--json", "--data", data)
	cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
	cmd.Env = append(os.Environ(), asCommand+"=1", "GRANGE_LISTEN=/ip4/127.0.0.1/tcp/0", "HOME=/nowhere")
	cmd.Dir = "/"
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	var findings []doctor.Finding
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		code = ended.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v: %s%s", err, out, complaint.String())
	}
	found = map[string]doctor.Finding{}
	for _, f := range findings {
		found[f.What] = f
	}
	return code, found
}

// TestDoctorLooksAtTheHost: few files, small packets, no FUSE, a data folder that another user
// was at, and a node that this user may not ask.
func TestDoctorLooksAtTheHost(t *testing.T) {
	const nobody = 65534
	dir, err := os.MkdirTemp("", "grange") // where everybody gets to
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, data, mixed := filepath.Join(dir, "grange"), filepath.Join(dir, "new"), filepath.Join(dir, "mixed")
	self, err := os.ReadFile(os.Args[0])
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(program, self, 0o755), os.MkdirAll(filepath.Join(mixed, "records"), 0o755), os.Chown(filepath.Join(mixed, "records"), nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	if code, found := examined(t, program, data, "prlimit", "--nofile=512:1024"); code != int(doctorWarns) || found["files"].Mark != doctor.Warn {
		t.Errorf("few files: code %d, %v", code, found)
	}
	code, found := examined(t, program, data, "unshare", "-n", "-m", "sh", "-c", `ip link set lo mtu 1000 up; mount --bind /proc/version /dev/fuse; mount -o remount,bind,ro /dev/fuse; exec "$0" "$@"`)
	if code != int(doctorWarns) || found["mtu"].Mark != doctor.Warn || !strings.Contains(found["mtu"].Mend, "dev lo mtu") || found["fuse"].Mark != doctor.Note {
		t.Errorf("small packets, no FUSE: code %d, %v", code, found)
	}
	if code, found := examined(t, program, mixed); code != 1 || found["data folder"].Mark != doctor.Bad || !strings.Contains(found["data folder"].Mend, "chown -R 0 "+mixed) {
		t.Errorf("a mixed folder: code %d, %v", code, found)
	}
	s := serveNode(t)
	defer s.signal(t, syscall.SIGTERM)
	served := filepath.Join(s.dir, "data")
	for at := served; at != "/" && at != os.TempDir(); at = filepath.Dir(at) { // so that the socket alone says no
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if code, found := examined(t, program, served, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"); code != 1 || len(found) != 1 || !strings.Contains(found["node"].Mend, "sudo -u") {
		t.Errorf("not asked: code %d, %v", code, found)
	}
}
