package day

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/netns"
)

//go:embed systemctl.sh
var systemctl []byte

//go:embed scp.sh
var scp []byte

// storeName is what the README calls the S3 server.
const storeName = "s3.example.com"

// setUp makes the mounts of a host: what it changes of the system stays with it, and
// the node's folder lies on a disk of 2 GiB of its own.
const setUp = `
hostname $NAME
mount -t tmpfs tmpfs /mnt
for d in etc usr/local root var/log; do
  mkdir -p /mnt/$d/upper /mnt/$d/work
  mount -t overlay overlay -o lowerdir=/$d,upperdir=/mnt/$d/upper,workdir=/mnt/$d/work /$d
done
mount -t tmpfs tmpfs /run
truncate -s 2G $DIR/disk
mke2fs -q -F -t ext4 $DIR/disk
mkdir -p $DIR/lib/grange-disk && mount --bind $DIR/lib /var/lib && mount -o loop $DIR/disk /var/lib/grange-disk
mkdir /var/lib/grange-disk/grange /var/lib/grange && mount --bind /var/lib/grange-disk/grange /var/lib/grange
mkdir /mnt/home && cp -r $HOME_FILES/. /mnt/home
cp $DIR/systemctl /usr/local/bin/systemctl && cp $DIR/scp /usr/local/bin/scp
echo ready
sleep infinity &
wait # and take in those that ended
`

// host is a machine of the day: namespaces that a sleeping process holds.
type host struct {
	name   string
	at     *netns.Host
	holder *exec.Cmd
	hosts  string // folder with the holders' processes
}

// newHost makes one. Its end kills whatever still runs on it.
func newHost(t *testing.T, network *netns.Network, dir, name string) *host {
	t.Helper()
	at, err := network.Host(t.Context(), "lan")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{name: name, at: at, hosts: filepath.Join(dir, "hosts")}
	own := filepath.Join(dir, name)
	files := homeFiles(t, dir)
	for path, data := range map[string][]byte{filepath.Join(own, "systemctl"): systemctl, filepath.Join(own, "scp"): scp} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.holder = at.Command(context.Background(), "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-euc", setUp)
	h.holder.Env = append(os.Environ(), "NAME="+name, "DIR="+own, "HOME_FILES="+files)
	var said bytes.Buffer
	h.holder.Stderr = &said
	h.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := h.holder.StdoutPipe()
	if err == nil {
		err = h.holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.holder.Process.Kill()
		h.holder.Wait() // it was killed, which is no news
	})
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatalf("host %s: %v: %s", name, err, said.String())
	}
	if err := os.MkdirAll(h.hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.hosts, name), []byte(strconv.Itoa(h.inside(t))), 0o644); err != nil {
		t.Fatal(err)
	}
	return h
}

// inside is the process that unshare has started.
func (h *host) inside(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", h.holder.Process.Pid, h.holder.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// homeFiles is the folder in which the operator stands: the program and a disk image.
func homeFiles(t *testing.T, dir string) string {
	t.Helper()
	files := filepath.Join(dir, "home")
	if err := os.MkdirAll(filepath.Join(files, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"cp", "../../bin/grange", filepath.Join(files, "bin/grange")},
		{"qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(files, "debian.qcow2"), "64M"},
		{"qemu-io", "-c", "write -P 9 0 8M", filepath.Join(files, "debian.qcow2")},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	return files
}

// paste runs commands in a shell of the host, and ends the test at the first that
// fails. It returns what they said.
func (h *host) paste(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, blockTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(h.inside(t)), "--net", "--mount", "--uts", "--pid", "--wdns=/mnt/home", "bash", "-euo", "pipefail", "-s")
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTS="+h.hosts, "HOME=/root", "COLUMNS=120")
	cmd.Stdin = strings.NewReader(script)
	cmd.WaitDelay = time.Second // what it started may hold its output
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("on %s: %v\n%s\nit said:\n%s\nthe node's log:\n%s", h.name, err, script, out, h.log())
	}
	return string(out)
}

// log is the end of what the node said.
func (h *host) log() []byte {
	b, err := exec.Command("nsenter", "-t", strconv.Itoa(h.holder.Process.Pid), "--mount", "tail", "-n", "20", "/var/log/grange.log").CombinedOutput()
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// startStore starts an S3 server with TLS, under a name that the hosts know and trust.
func startStore(t *testing.T, network *netns.Network, dir string, hosts map[string]*host) {
	t.Helper()
	binary, err := buckettest.Gateway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at, err := network.Host(t.Context(), "store")
	if err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t, dir)
	bucket := filepath.Join(dir, "store", "images")
	if err := os.MkdirAll(bucket, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := at.Command(context.Background(), binary, "--port", ":443", "--cert", cert, "--key", key, "--quiet", "posix", filepath.Dir(bucket))
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=grange", "ROOT_SECRET_KEY=grange-secret")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed, which is no news
	})
	for _, h := range hosts {
		h.paste(t.Context(), t, fmt.Sprintf("echo %s %s >> /etc/hosts; cat %s >> /etc/ssl/certs/ca-certificates.crt\n"+
			"until (: > /dev/tcp/%s/443) 2>/dev/null; do sleep 0.1; done", at.Addr(), storeName, cert, storeName))
	}
}

// certificate makes one for the store, which signs itself.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: storeName}, DNSNames: []string{storeName}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "store.crt"), filepath.Join(dir, "store.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
