package instance

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTargets(t *testing.T) {
	for _, x := range []struct{ said, want string }{
		{`{"type":"file","path":"/srv/a b"}`, "file:///srv/a%20b"},
		{`{"type":"s3","bucket":"zen","prefix":"hub/one/","endpoint":"http://10.0.0.1:9000","region":"eu","path_style":true}`, "s3://zen/hub/one?endpoint=http%3A%2F%2F10.0.0.1%3A9000&path-style=true&region=eu"},
		{`{"type":"s3","bucket":"zen"}`, "s3://zen/"},
		{`{"type":"s3"}`, ""}, {`{"type":"file","path":"/x","region":"eu"}`, ""}, {`{"type":"gcs","bucket":"x"}`, ""}, {`{"type":"s3","bucket":"zen","secret":"x"}`, ""}, {`[]`, ""},
	} {
		file := filepath.Join(t.TempDir(), "target.json")
		if err := os.WriteFile(file, []byte(x.said), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := targetOf(file); got != x.want || (err == nil) != (x.want != "") {
			t.Errorf("%s: %q, %v, want %q", x.said, got, err, x.want)
		}
	}
	for _, same := range []string{"", "file:///srv", "s3://zen/hub?region=eu"} {
		if got, err := targetOf(same); got != same || err != nil {
			t.Errorf("%q: %q, %v", same, got, err)
		}
	}
	if _, err := targetOf("/no/such/file"); err == nil {
		t.Error("a file that is not there")
	}
}
