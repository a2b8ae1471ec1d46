package packages

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/guest"
	"github.com/grangemesh/grange/simulations/soak"
)

const root = "../.."

// build makes the packages of a copy of the repository, for the targets.
func build(t *testing.T, from, targets string) (out string) {
	t.Helper()
	out = filepath.Join(t.TempDir(), "packages")
	sh(t, from, "go", "run", "./cmd/grange/packaging", "-out", out, "-targets", targets)
	return out
}

// sh runs a program in a folder and returns what it says.
func sh(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// the returns the one file of a folder that ends so.
func the(t *testing.T, dir, end string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"+end))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d files %s in %s: %v", len(found), end, dir, err)
	}
	return found[0]
}

// copyOf is the repository as it is, elsewhere.
func copyOf(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	sh(t, root, "bash", "-c", `cp -a .git "$1" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t "$1"`, "copy", to)
	return to
}

func TestPackages(t *testing.T) {
	targets := soak.Of("linux/amd64", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64,windows/amd64")
	one := build(t, root, targets)
	t.Run("made again", func(t *testing.T) { madeAgain(t, one, targets) })
	t.Run("image", func(t *testing.T) { image(t, the(t, one, "_oci.tar")) })
	t.Run("rpm", func(t *testing.T) { sameAsRPM(t, one) })
	t.Run("debian", func(t *testing.T) {
		shared := t.TempDir()
		sh(t, ".", "cp", the(t, one, "_amd64.deb"), filepath.Join(shared, "grange.deb"))
		successor(t, shared)
		m := bootMachine(t, shared)
		for _, step := range []struct {
			name string
			does func(*testing.T, *machine)
		}{
			{"installed", installed}, {"verified", verified}, {"ready", becomesReady}, {"reloaded", reloaded}, {"killed", killed}, {"upgraded", upgraded},
			{"shut in", shutIn}, {"opened", opened}, {"seed", seed}, {"removed", removed}, {"purged", purged},
		} {
			if !t.Run(step.name, func(t *testing.T) { step.does(t, m) }) {
				return // what follows builds on it
			}
		}
	})
}

// madeAgain: the same commit at another place, by another umask and time zone, and in a
// soak with nothing compiled before, gives the same bytes.
func madeAgain(t *testing.T, one, targets string) {
	t.Setenv("TZ", "Asia/Kathmandu")
	if soak.Full() {
		t.Setenv("GOCACHE", t.TempDir())
	}
	two := filepath.Join(t.TempDir(), "packages")
	sh(t, copyOf(t), "bash", "-c", `umask 077 && exec go run ./cmd/grange/packaging -out "$1" -targets "$2"`, "again", two, targets)
	sh(t, two, "sha256sum", "--check", "--strict", filepath.Join(one, "SHA256SUMS"))
	files, err := os.ReadDir(two)
	sums, failed := os.ReadFile(filepath.Join(one, "SHA256SUMS"))
	if lines := bytes.Count(sums, []byte("\n")); errors.Join(err, failed) != nil || lines != len(files)-1 || lines < 4 {
		t.Errorf("%d sums of %d files: %v, %v", lines, len(files), err, failed)
	}
}

// sameAsRPM: the RPM has what the .deb has, but for places that differ by distribution.
func sameAsRPM(t *testing.T, dir string) {
	rpm := the(t, dir, ".x86_64.rpm")
	list := strings.Fields(sh(t, ".", "rpm", "-qpl", rpm))
	has := map[string]bool{}
	for _, name := range list {
		has[name] = true
	}
	for _, line := range strings.Split(sh(t, ".", "dpkg-deb", "-c", the(t, dir, "_amd64.deb")), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 6 || strings.HasSuffix(fields[5], "/") {
			continue
		}
		name := strings.Replace(strings.TrimPrefix(fields[5], "."), "zsh/vendor-completions", "zsh/site-functions", 1)
		if !has[name] && !strings.HasPrefix(name, "/usr/share/doc/grange/c") {
			t.Errorf("the .deb has %s, the .rpm does not", name)
		}
	}
	if got := strings.Fields(sh(t, ".", "rpm", "-qp", "--configfiles", rpm)); strings.Join(got, " ") != "/etc/grange/environment /etc/grange/grange.yaml /etc/grange/seed.yaml" {
		t.Errorf("settings: %q", got)
	}
	if scripts := sh(t, ".", "rpm", "-qp", "--scripts", rpm); !strings.Contains(scripts, "systemd-sysusers grange.conf") || strings.Count(scripts, "scriptlet") != 3 {
		t.Errorf("scripts: %s", scripts)
	}
	to := t.TempDir()
	sh(t, to, "bash", "-c", `rpm -K --nosignature "$1" && rpm2cpio "$1" | cpio -idm --quiet --no-absolute-filenames`, "unpack", rpm)
	if version := sh(t, ".", filepath.Join(to, "usr/bin/grange"), "--version"); version == "" {
		t.Error("the program says no version")
	}
	archive := sh(t, to, "bash", "-c", `tar -xzf "$1" && grange_*/grange --version && ls grange_*`, "unpack", the(t, dir, "_linux_amd64.tar.gz"))
	for _, want := range []string{"LICENSE", "README.md", "completion", "man", "seed.yaml"} {
		if !strings.Contains(archive, want) {
			t.Errorf("the archive lacks %s: %s", want, archive)
		}
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		sh(t, ".", "dash", "-n", filepath.Join(root, "cmd/grange/packaging/scripts", script+".sh"))
	}
}

// successor makes the package of a later version, whose program is another one.
func successor(t *testing.T, shared string) {
	t.Helper()
	sh(t, shared, "bash", "-euc", `dpkg-deb -R grange.deb later
sed -i 's/^Version: .*/Version: 9.0/' later/DEBIAN/control
echo later >>later/usr/bin/grange
dpkg-deb -Znone --root-owner-group -b later later.deb >/dev/null
rm -r later`)
}

func installed(t *testing.T, m *machine) {
	m.run(t, "dpkg -i /packages/grange.deb")
	m.wants(t, "stat -c '%U %G %a' /var/lib/grange", "grange grange 700")
	m.wants(t, "stat -c '%U %a' /etc/grange/environment", "root 600")
	m.wants(t, "systemctl is-enabled grange grange-seed || true", "disabled\ndisabled")
	m.wants(t, "systemctl is-active grange grange-seed || true", "inactive\ninactive")
	m.wants(t, "dpkg --verify grange", "")
	m.wants(t, "bash -c 'source /usr/share/bash-completion/completions/grange; COMP_WORDS=(grange volume att) COMP_CWORD=2; _grange; echo ${COMPREPLY[*]}'", "attach")
}

// verified: systemd finds nothing wrong, and what the units leave open is no more than 4 of 10.
func verified(t *testing.T, m *machine) {
	m.wants(t, "systemd-analyze verify --man=no grange.service grange-seed.service 2>&1", "")
	for _, unit := range []string{"grange.service", "grange-seed.service"} {
		said := m.run(t, "systemd-analyze security --no-pager --threshold=40 "+unit)
		t.Log(said[strings.LastIndex(said, "Overall"):])
	}
	m.run(t, "udevadm control --ping 2>/dev/null || true; grep -q 'ublks_max=4096' /usr/lib/modprobe.d/grange.conf")
}

// settle gives the node its settings.
const settle = `mkdir -p /srv/work && install -d -o grange -m 700 /srv/origin
cat >/etc/grange/grange.yaml <<END
data: /var/lib/grange
origin: file:///srv/origin
listen: [/ip4/127.0.0.1/tcp/0]
END
`

// becomesReady: the unit is active once the node is ready, and not before.
func becomesReady(t *testing.T, m *machine) {
	m.run(t, settle+"systemctl enable --now grange && grange status >/dev/null")
	m.wants(t, "systemctl show -p ActiveState --value grange", "active")
	if text := m.run(t, "systemctl show -p StatusText --value grange"); !strings.HasPrefix(text, "ready; volumes: 0; origin: ok") {
		t.Errorf("status %q", text)
	}
	m.run(t, "grange volume create disk --size 64M --transport nbd")
	m.wants(t, "grange complete -- volume show d", "disk")
	// A manager whose watchdog is impatient hears from it all the time.
	m.run(t, `mkdir -p /run/systemd/system/grange.service.d && printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/grange.service.d/watchdog.conf
systemctl daemon-reload && systemctl restart grange
for n in 1 2 3; do
  last=$(systemctl show -p WatchdogTimestampMonotonic --value grange)
  timeout 10 bash -c "until [ \$(systemctl show -p WatchdogTimestampMonotonic --value grange) != $last ]; do :; done"
done
rm /run/systemd/system/grange.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart grange`)
	m.wants(t, "systemctl show -p NRestarts --value grange", "0")
}

func (m *machine) process(t *testing.T) string {
	return m.run(t, "systemctl show -p MainPID --value grange")
}

// reloaded: a reload is a handover that no client notices, and has ended when the next
// program is ready; what would not start is refused, and said.
func reloaded(t *testing.T, m *machine) {
	before := m.process(t)
	m.under(t, "disk", func(w *guest.Work) {
		for range soak.Of(3, 50) {
			goesOn(t, w)
			m.run(t, "systemctl reload grange && [ $(systemctl show -p ActiveState --value grange) = active ] && grange status >/dev/null")
		}
		goesOn(t, w)
		m.run(t, `cp /etc/grange/grange.yaml /root/ && echo 'quotas: 1' >>/etc/grange/grange.yaml
! systemctl reload grange
kill -USR2 $(systemctl show -p MainPID --value grange)
timeout 20 bash -c "until systemctl show -p StatusText --value grange | grep -q '^ready.*no handover.*quotas'; do :; done"
cp /root/grange.yaml /etc/grange/grange.yaml
[ $(systemctl show -p ActiveState --value grange) = active ]`)
		goesOn(t, w)
	})
	if after := m.process(t); after != before {
		t.Errorf("process %s was %s", after, before)
	}
}

func killed(t *testing.T, m *machine) {
	m.under(t, "disk", func(w *guest.Work) {
		for range soak.Of(1, 20) {
			goesOn(t, w)
			m.run(t, "systemctl kill -s KILL grange")
			goesOn(t, w)
		}
	})
	m.run(t, "grange status --wait 30s >/dev/null")
}

// upgraded: the new program serves under the old one's number, and the settings stay.
func upgraded(t *testing.T, m *machine) {
	before := m.process(t)
	m.under(t, "disk", func(w *guest.Work) {
		goesOn(t, w)
		m.run(t, "dpkg -i /packages/later.deb")
		goesOn(t, w)
	})
	if after := m.process(t); after != before {
		t.Errorf("process %s was %s", after, before)
	}
	m.run(t, "cmp /usr/bin/grange /proc/$(systemctl show -p MainPID --value grange)/exe && grep -q file:///srv/origin /etc/grange/grange.yaml")
}

// shutIn: the unit as it stands does what needs no root, and says what it can't do.
func shutIn(t *testing.T, m *machine) {
	m.run(t, `cd /srv/work && mkdir -p site && echo hello >site/index.html && grange tree import site ./site
install -d -o grange out && grange volume export disk /srv/work/out/disk.raw
grange image import disk /srv/work/out/disk.raw --format raw
grange instance provision web --from tree:site -- python3 -m http.server --directory {data} {port}
[ "$(curl -s localhost:20000/index.html)" = hello ]
systemctl restart grange
[ "$(curl -s localhost:20000/index.html)" = hello ]
grange instance deprovision web`)
	said, err := m.try(t, "mkdir -p /srv/seen && grange tree mount site /srv/seen")
	if err == nil || !strings.Contains(said, "instances.conf") {
		t.Errorf("a mount that nobody sees: %v, %s", err, said)
	}
	m.wants(t, "ls -A /srv/seen; grange tree mount | tail -n +2", "")
}

// opened: the drop-in opens what the README promises of a node that is root.
func opened(t *testing.T, m *machine) {
	m.run(t, `mkdir -p /etc/systemd/system/grange.service.d /srv/instances && mount -t tmpfs -o mode=755 instances /srv/instances
ln -s /usr/share/grange/instances.conf /etc/systemd/system/grange.service.d/
echo 'instance-dir: /srv/instances' >>/etc/grange/grange.yaml
systemctl daemon-reload && systemctl restart grange
systemd-analyze verify --man=no grange.service`)
	m.wants(t, "grange tree mount site /srv/seen >/dev/null && setpriv --reuid nobody cat /srv/seen/index.html && grange tree unmount /srv/seen >/dev/null", "hello")
	m.wants(t, `grange instance provision web --user nobody --from tree:site -- python3 -m http.server --directory {data} {port} &>/dev/null
curl -s localhost:20000/index.html; ps -o user= -C python3; grange instance deprovision web &>/dev/null`, "hello\nnobody")
	m.wants(t, `grange instance provision lazy --lazy --from tree:site -- python3 -m http.server --directory {data} {port} &>/dev/null
curl -s localhost:20000/index.html; systemctl restart grange; curl -s localhost:20000/index.html; grange instance deprovision lazy &>/dev/null`, "hello\nhello")
	m.run(t, "rm /etc/systemd/system/grange.service.d/instances.conf && sed -i /^instance-dir/d /etc/grange/grange.yaml && systemctl stop grange && chown -R grange: /var/lib/grange && systemctl daemon-reload && systemctl start grange && umount /srv/instances")
}

// seed: a token among the credentials makes one a member, and it starts without afterwards.
func seed(t *testing.T, m *machine) {
	m.run(t, `mkdir -p /etc/credstore && (umask 077; grange token create --role seed >/etc/credstore/grange.token)
printf 'listen: [/ip4/127.0.0.1/tcp/0]\nfollow: nothing-*\n' >/etc/grange/seed.yaml
systemctl start grange-seed && rm /etc/credstore/grange.token && systemctl restart grange-seed && systemctl reload grange-seed
systemctl show -p StatusText --value grange-seed | grep -q '^ready; sends: '
grange mesh members | grep -q ' seed '`)
}

// removed: what the node holds stays, and comes back with the package.
func removed(t *testing.T, m *machine) {
	m.run(t, "dpkg -r grange && ! systemctl is-active grange && [ -e /var/lib/grange/identity.key ] && [ -e /var/lib/private/grange-seed/identity.key ] && [ -e /etc/grange/grange.yaml ]")
	m.run(t, "dpkg -i /packages/grange.deb && systemctl start grange")
	d := m.openDisk(t, "disk")
	if err := d.ask("read 0 64k", "read 65536/65536"); err != nil {
		t.Error(err)
	}
}

// purged: nobody's disk goes unless somebody has said yes.
func purged(t *testing.T, m *machine) {
	said := m.run(t, "DEBIAN_FRONTEND=noninteractive dpkg -P grange 2>&1 && [ -e /var/lib/grange/identity.key ] && ! [ -e /etc/grange ]")
	if !strings.Contains(said, "the data stay: /var/lib/grange /var/lib/private/grange-seed") {
		t.Errorf("it said %s", said)
	}
	m.run(t, `dpkg -i /packages/grange.deb && printf 'yes\n' | DEBIAN_FRONTEND=teletype dpkg -P grange && ! [ -e /var/lib/grange ] && ! [ -e /var/lib/private/grange-seed ]`)
	m.run(t, `dpkg -i /packages/grange.deb && touch /var/lib/grange/volume && GRANGE_PURGE_DATA=yes dpkg -P grange && ! [ -e /var/lib/grange ]`)
}
