package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/cmd/grange/units"
	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/instance"
)

// parse reads a command line beside a config file.
func parse(t *testing.T, config string, args ...string) (cli, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "grange.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var c cli
	parser, err := newParser(&c, ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(append([]string{"--config", path}, args...))
	return c, err
}

// TestPrecedence: flags come before the environment, that before the file, and that
// before what is built in.
func TestPrecedence(t *testing.T) {
	quota := func(config string, args ...string) units.Size {
		t.Helper()
		c, err := parse(t, config, append([]string{"node"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return c.Node.Quota
	}
	if got := quota(""); got != 20<<30 {
		t.Errorf("built in: %d", got)
	}
	if got := quota("quota: 5GiB\n"); got != 5<<30 {
		t.Errorf("of the file: %d", got)
	}
	t.Setenv("GRANGE_QUOTA", "6GiB")
	if got := quota("quota: 5GiB\n"); got != 6<<30 {
		t.Errorf("of the environment: %d", got)
	}
	if got := quota("quota: 5GiB\n", "--quota", "7GiB"); got != 7<<30 {
		t.Errorf("of the flag: %d", got)
	}
}

// TestForceIsSaidOnTheCommandLine: neither the environment nor a file takes a disk
// from its users, or replaces a file.
func TestForceIsSaidOnTheCommandLine(t *testing.T) {
	t.Setenv("GRANGE_FORCE", "true")
	force := func(args ...string) (forced []bool) {
		t.Helper()
		c, err := parse(t, "", args...)
		if err != nil {
			t.Fatal(err)
		}
		return []bool{c.Volume.Rm.Force, c.Volume.Detach.Force, c.Image.Export.Force}
	}
	for i, args := range [][]string{{"volume", "rm", "v"}, {"volume", "detach", "v"}, {"image", "export", "i", "file"}} {
		if force(args...)[i] {
			t.Errorf("%q: forced by what is not on the command line", args)
		}
		if !force(append(args, "--force")...)[i] {
			t.Errorf("%q --force: not forced", args)
		}
		if _, err := parse(t, "force: true\n", args...); err == nil || !strings.Contains(err.Error(), "force (on the command line alone)") {
			t.Errorf("%q with a file that forces: %v", args, err)
		}
	}
}

func TestListsOfTheFile(t *testing.T) {
	c, err := parse(t, "origin:\n- s3://a/b?x=1,2\n- file:///c\nfarm-join: [a:1, b:2]\n", "node")
	if err != nil || len(c.Node.Origin) != 2 || c.Node.Origin[0] != "s3://a/b?x=1,2" || len(c.Node.FarmJoin) != 2 {
		t.Errorf("%q, %q, %v", c.Node.Origin, c.Node.FarmJoin, err)
	}
	if c, err = parse(t, "farm-join: a:1,b:2\norigin: file:///c\n", "node"); err != nil || len(c.Node.FarmJoin) != 2 || len(c.Node.Origin) != 1 {
		t.Errorf("%q, %q, %v", c.Node.Origin, c.Node.FarmJoin, err)
	}
}

func TestEmptyTokenFoundsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if code := run(t.Context(), []string{"node", "--data", dir, "--join", ""}, ask.Stdio{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}, nil); code != 2 {
		t.Errorf("code %d, want 2", code)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the data folder was made")
	}
}

func TestConfigRefusesUnknownSettings(t *testing.T) {
	if _, err := parse(t, "farm_bind: x\nquota: 5GiB\n", "node"); err == nil || !strings.Contains(err.Error(), "farm_bind") {
		t.Errorf("%v, want an error that names farm_bind", err)
	}
}

// TestErrorsInACommandLine say what to write, or where to read on, in a user's words.
func TestErrorsInACommandLine(t *testing.T) {
	for _, x := range []struct {
		config string
		args   []string
		want   string
	}{
		{"", []string{"status", "--wait", "30"}, "write it as 30s"},
		{"", []string{"token", "create", "--role", "node", "--lifetime", "1y"}, "write it as 30s, 24h or 7d"},
		{"farm_bind: x", []string{"node"}, "farm-bind is meant"},
		{"quota 5", []string{"node"}, "NAME: VALUE"},
		{"", []string{"import", "x", "y"}, "see `grange --help`"},
		{"", []string{"image", "import", "x"}, "see `grange image import --help`"},
		{"", []string{"image", "remove", "x"}, "see `grange image --help`"},
	} {
		path := filepath.Join(t.TempDir(), "grange.yaml")
		if err := os.WriteFile(path, []byte(x.config), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, complaint := command(t, append(x.args, "--config", path)...)
		if code != 2 || !strings.Contains(complaint, x.want) {
			t.Errorf("%q, %s: code %d, %swant %s", x.config, x.args, code, complaint, x.want)
		}
	}
}

// TestLimitsThatCouldNeverWork are refused with the flag's name, wherever they stand.
func TestLimitsThatCouldNeverWork(t *testing.T) {
	for _, args := range [][]string{
		{"--quota", "0"}, {"--quota", "10"}, {"--origin-rate", "0"}, {"--origin-rate", "10"}, {"--origin-rate", "127KiB/s"}, {"--origin-requests", "0.1"}, {"--origin-requests", "0"},
		{"--io-timeout", "1ns"}, {"--io-timeout", "999ms"},
		{"--instance-ports", "20000"}, {"--instance-ports", "0-10"}, {"--instance-ports", "30000-20000"}, {"--instance-ports", "1-65536"}, {"--instance-provision-threads", "-1"}, {"--instance-hydration-threads", "two"}, {"--instance-max", "-1"},
		{"--instance-memory", "0%"}, {"--instance-memory", "101%"}, {"--instance-memory", "NaN%"}, {"--instance-memory", "much"}, {"--instance-disk", "0"}, {"--instance-disk", "%"},
	} {
		if _, err := parse(t, "", "node", args[0]+"="+args[1]); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%s: %v", args, err)
		}
		if _, err := parse(t, strings.TrimPrefix(args[0], "--")+": '"+args[1]+"'", "node"); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%s of the file: %v", args, err)
		}
	}
	for _, args := range [][]string{
		{"--monthly", "0"}, {"--monthly", "63MiB"}, {"--monthly", "-1GiB"}, {"--upload-rate", "0"}, {"--upload-rate", "-5MiB/s"}, {"--upload-rate", "127KiB/s"},
		{"--schedule", "night"}, {"--schedule", "22:00-06:00 -1MiB/s"}, {"--schedule", "22:00-06:00 1KiB/s"}, {"--schedule", "22:00-06:00,25:00-26:00"},
		{"--follow", "x["}, {"--follow", "volume:web1"}, {"--follow", "a,,b"}, {"--follow", strings.Repeat("a,", 64) + "a"},
	} {
		if _, err := parse(t, "", "seed", args[0]+"="+args[1]); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("seed %s: %v", args, err)
		}
	}
	for _, args := range [][]string{{}, {"--quota", "1GiB"}, {"--origin-rate", "128KiB"}, {"--origin-requests", "1/s"}} {
		if _, err := parse(t, "", append([]string{"node"}, args...)...); err != nil {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestHowInstancesAreRun: what a node is not told is for it to choose, and none is not what it is not told.
func TestHowInstancesAreRun(t *testing.T) {
	c, err := parse(t, "instance-ports: 7000-7009\ninstance-memory: 80%\nmemory: 1GiB\n", "node", "--instance-dir", "/srv/i", "--instance-provision-threads", "0", "--instance-disk", "10G", "--instance-max", "3")
	got := c.Node.Instance.Config()
	if err != nil || got.Provisions == nil || *got.Provisions != 0 || got.Hydrations != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Provisions = nil
	want := node.Instances{Dir: "/srv/i", First: 7000, Last: 7009, Limits: instance.Limits{Instances: 3, Memory: instance.Share{Part: 0.8}, Disk: instance.Share{Bytes: 10 << 30}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if c, err = parse(t, "", "node"); err != nil || !reflect.DeepEqual(c.Node.Instance.Config(), node.Instances{First: 20000, Last: 29999}) {
		t.Errorf("%+v, %v", c.Node.Instance.Config(), err)
	}
	t.Setenv("GRANGE_MEMORY", "1GiB") // the node's
	if c, err = parse(t, "memory: 1GiB\n", "instance", "provision", "web1"); err != nil || c.Instance.Provision.Memory != 0 {
		t.Errorf("%d, %v", c.Instance.Provision.Memory, err)
	}
}
