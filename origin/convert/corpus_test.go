package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// shell runs a script in dir.
func shell(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-euc", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// sum is the size of a disk, and the hash of its bytes.
type sum string

func sumOf(b []byte) sum {
	h := sha256.Sum256(b)
	return sum(fmt.Sprintf("%d %s", len(b), hex.EncodeToString(h[:])))
}

// hashedMax is the largest disk whose holes judge hashes too, in bytes.
const hashedMax = 4 << 30

// judge imports a source: what it holds, or why it is refused.
func judge(t *testing.T, o Options) (sum, error) {
	t.Helper()
	if o.Temp == "" {
		o.Temp = t.TempDir()
	}
	d, err := Open(t.Context(), o)
	if err != nil {
		return "", err
	}
	h, next, zeros := sha256.New(), uint64(0), make([]byte, chunk)
	err = Chunks(t.Context(), d, chunk, func(_ context.Context, index uint64, raw []byte) error {
		for ; next < index && d.Size() <= hashedMax; next++ {
			h.Write(zeros)
		}
		next = index + 1
		_, err := h.Write(raw[:min(chunk, d.Size()-int64(index)*chunk)])
		return err
	}, nil)
	for off := int64(next) * chunk; off < d.Size() && d.Size() <= hashedMax; off += chunk {
		h.Write(zeros[:min(chunk, d.Size()-off)])
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return "", err
	}
	if left, _ := os.ReadDir(o.Temp); len(left) > 0 {
		t.Errorf("%s: left behind: %v", o.Path, left)
	}
	return sum(fmt.Sprintf("%d %s", d.Size(), hex.EncodeToString(h.Sum(nil)))), nil
}

// images makes the disks of the corpus from the file raw: all hold the same bytes.
// What is before the colon is the file's name.
func images() []string {
	return []string{
		`plain.qcow2: qemu-img convert -O qcow2 raw $f`,
		`old.qcow2: qemu-img convert -O qcow2 -o compat=0.10 raw $f`,
		`small.qcow2: qemu-img convert -O qcow2 -o cluster_size=512 raw $f`,
		`large.qcow2: qemu-img convert -O qcow2 -o cluster_size=2M raw $f`,
		`deflate.qcow2: qemu-img convert -c -O qcow2 raw $f`,
		`deflate-small.qcow2: qemu-img convert -c -O qcow2 -o cluster_size=4k raw $f`,
		`deflate-large.qcow2: qemu-img convert -c -O qcow2 -o cluster_size=2M raw $f`,
		`zstd.qcow2: qemu-img convert -c -O qcow2 -o compression_type=zstd raw $f`,
		`zstd-large.qcow2: qemu-img convert -c -O qcow2 -o compression_type=zstd,cluster_size=2M raw $f`,
		`subclusters.qcow2: qemu-img convert -O qcow2 -o extended_l2=on raw $f`,
		`lazy.qcow2: qemu-img convert -O qcow2 -o lazy_refcounts=on raw $f`,
		`narrow.qcow2: qemu-img convert -O qcow2 -o refcount_bits=1 raw $f`,
		`wide.qcow2: qemu-img convert -O qcow2 -o refcount_bits=64 raw $f`,
		`metadata.qcow2: qemu-img convert -O qcow2 -o preallocation=metadata raw $f`,
		`falloc.qcow2: qemu-img convert -O qcow2 -o preallocation=falloc raw $f`,
		`full.qcow2: qemu-img convert -O qcow2 -o preallocation=full raw $f`,
		`snapshot.qcow2: qemu-img convert -O qcow2 raw $f; qemu-img snapshot -c before $f; qemu-io -c 'write -P 9 0 64k' $f; qemu-io -f qcow2 -c "write -s raw 0 64k" $f`,
		`zeros.qcow2: qemu-img convert -O qcow2 -S 0 raw $f; qemu-io -c 'write -z 384k 128k' -c 'write -zu 512k 64k' $f`,
		`bitmap.qcow2: qemu-img convert -O qcow2 raw $f; qemu-img bitmap --add $f changed`,
		`noname: qemu-img convert -O qcow2 raw $f`,
		`one.qcow: qemu-img convert -O qcow raw $f`,
		`plain.qed: qemu-img convert -O qed raw $f`,
		`small.qed: qemu-img convert -O qed -o cluster_size=4k raw $f`,
		`table.qed: qemu-img convert -O qed -o table_size=16 raw $f`,
		`dynamic.vdi: qemu-img convert -O vdi raw $f`,
		`static.vdi: qemu-img convert -O vdi -o static=on raw $f`,
		`sparse.vmdk: qemu-img convert -O vmdk raw $f`,
		`stream.vmdk: qemu-img convert -O vmdk -o subformat=streamOptimized raw $f`,
		`old.vmdk: qemu-img convert -O vmdk -o compat6 raw $f`,
		`zeroed.vmdk: qemu-img convert -O vmdk -o zeroed_grain=on raw $f`,
		`plain.vhdx: qemu-img convert -O vhdx raw $f`,
		`fixed.vhdx: qemu-img convert -O vhdx -o subformat=fixed raw $f`,
		`blocks.vhdx: qemu-img convert -O vhdx -o block_size=8M raw $f`,
		`log.vhdx: qemu-img convert -O vhdx -o log_size=2M,block_state_zero=off raw $f`,
		`dynamic.vhd: qemu-img convert -O vpc -o force_size raw $f`,
		`fixed.vhd: qemu-img convert -O vpc -o subformat=fixed,force_size raw $f`,
		`plain.hds: qemu-img convert -O parallels raw $f`,
		`small.hds: qemu-img convert -O parallels -o cluster_size=64k raw $f`,
		`some.raw: cp --sparse=always raw $f`,
		`some.raw.gz: gzip -c raw >$f`,
		`two.raw.gz: (head -c 1M raw | gzip -c; tail -c +1048577 raw | gzip -c) >$f`,
		`some.raw.bz2: bzip2 -c raw >$f`,
		`some.raw.xz: xz -c raw >$f`,
		`some.raw.zst: zstd -qc raw >$f`,
		`two.raw.bz2: (head -c 1M raw | bzip2 -c; tail -c +1048577 raw | bzip2 -c) >$f`,
		`blocks.raw.xz: xz -T2 --block-size=256KiB -c raw >$f`,
		`large.raw.xz: xz --lzma2=preset=0,dict=64MiB -c raw >$f`,
		`two.raw.zst: (head -c 1M raw | zstd -qc; tail -c +1048577 raw | zstd -qc --long=27) >$f`,
		`some.qcow2.gz: qemu-img convert -O qcow2 raw q; gzip -c q >$f`,
		`some.vhd.zst: qemu-img convert -O vpc -o subformat=fixed,force_size raw q; zstd -qc q >$f`,
		`one.ova: qemu-img convert -O vmdk -o subformat=streamOptimized raw d.vmdk; echo '<Envelope/>' >a.ovf; echo >a.mf; tar -cf $f a.ovf a.mf d.vmdk`,
		`vhd.ova: qemu-img convert -O vpc -o subformat=fixed,force_size raw d.vhd; echo '<Envelope/>' >a.ovf; tar -cf $f a.ovf d.vhd`,
		`sparse.ova: qemu-img convert -O vmdk raw d.vmdk; echo '<Envelope/>' >a.ovf; tar -cf $f a.ovf d.vmdk`,
		`raw.ova.gz: echo '<Envelope/>' >a.ovf; cp raw d.img; tar -czf $f a.ovf d.img`,
	}
}

// corpus makes the images in one folder.
func corpus(t *testing.T) (dir string, names []string, want sum) {
	dir = t.TempDir()
	raw, data := sample(t)
	shell(t, dir, "cp --sparse=always "+raw+" raw")
	for _, line := range images() {
		name, script, _ := strings.Cut(line, ": ")
		shell(t, dir, "f="+name+"; "+script)
		names = append(names, name)
	}
	return dir, names, sumOf(data)
}

// peak is the most memory that this process has taken, in KiB.
func peak(t *testing.T) (most int64) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err == nil {
		_, after, _ := strings.Cut(string(status), "VmHWM:")
		_, err = fmt.Sscan(after, &most)
	}
	if err != nil {
		t.Error(err)
	}
	return most
}

// frugal checks at the end of a test what imports took at once: this process, and the
// largest of its children, which the system takes for as large as this process where they
// began.
func frugal(t *testing.T) {
	t.Helper()
	const limit = 512 << 10 // in KiB
	before := peak(t)
	debug.FreeOSMemory() // and forgets the peak of tests before
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var children unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &children); err != nil {
			t.Error(err)
		}
		own, child := peak(t), children.Maxrss
		if child <= max(own, before) {
			child = 0
		}
		if t.Logf("memory: %d MiB here, %d MiB in a child", own>>10, child>>10); own+child > limit {
			t.Errorf("that is more than %d MiB", limit>>10)
		}
	})
}

func TestEveryFormatGivesItsBytes(t *testing.T) {
	frugal(t)
	dir, names, want := corpus(t)
	if len(names)+len(archives())+len(refusals) < 60 {
		t.Errorf("a corpus of %d images, %d archives and %d files that are no disks", len(names), len(archives()), len(refusals))
	}
	for _, name := range names {
		got, err := judge(t, Options{Path: filepath.Join(dir, name)})
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
}

// TestCutImagesAreRefused cuts each image at 20 places: what is read of it then is
// all that it held, or nothing.
func TestCutImagesAreRefused(t *testing.T) {
	frugal(t)
	dir, names, want := corpus(t)
	cuts := 20 // and always the last byte
	for i, name := range names {
		if name == "some.raw" || !soak.Full() && i%3 != 0 {
			continue
		}
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for cut := range int64(cuts) {
			size := info.Size() - 1 - cut*info.Size()/int64(cuts)
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			format := Auto
			if name == "fixed.vhd" { // all of whose marks lie in its last sector
				format = VPC
			}
			got, err := judge(t, Options{Path: path, Format: format})
			if err == nil && got != want {
				t.Errorf("%s cut from %d to %d bytes is published as %s", name, info.Size(), size, got)
			}
			if err != nil {
				refused++
				if !errors.Is(err, content.ErrInvalid) && !errors.Is(err, content.ErrCorrupt) {
					t.Errorf("%s cut to %d: %v", name, size, err)
				}
			}
		}
		if refused < cuts/2 {
			t.Errorf("%s: %d of %d cuts are refused", name, refused, cuts)
		}
	}
}

// TestHeadersAreNotBelieved puts each field of each format to its extremes. What
// comes of it is an error or some disk; the test's own process is the proof, and
// the time that it takes.
func TestHeadersAreNotBelieved(t *testing.T) {
	frugal(t)
	dir, _, _ := corpus(t)
	for _, name := range []string{"sparse.vmdk", "stream.vmdk", "plain.qcow2", "deflate.qcow2", "one.qcow", "plain.qed", "dynamic.vdi", "plain.vhdx", "dynamic.vhd", "plain.hds", "some.raw.gz", "some.raw.bz2", "some.raw.xz", "some.raw.zst"} {
		whole, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		places := []int{}
		for at := 4; at < 112; at += 4 {
			places = append(places, at)
		}
		switch name {
		case "plain.vhdx": // regions, metadata and block table
			places = []int{64 << 10, 192<<10 + 8, 192<<10 + 32, 192<<10 + 40, 2<<20 + 10, 2<<20 + 48, 2<<20 + 64<<10, 3 << 20}
		case "dynamic.vdi":
			for at := 320; at < 400; at += 4 {
				places = append(places, at)
			}
		case "dynamic.vhd":
			places = append(places, 512+16, 512+20, 512+24, 512+28, 512+32)
		}
		step := soak.Of(5, 1)
		for i := 0; i < len(places); i += step {
			for _, value := range []byte{0xff, 0x7f, 0} {
				bad := bytes.Clone(whole)
				copy(bad[places[i]:], []byte{value, 0xff & (value | value<<1), value, value})
				path := filepath.Join(dir, "bad")
				if err := os.WriteFile(path, bad, 0o644); err != nil {
					t.Fatal(err)
				}
				_, err := judge(t, Options{Path: path})
				if err != nil && !errors.Is(err, content.ErrInvalid) && !errors.Is(err, content.ErrCorrupt) {
					t.Errorf("%s with %#x at %d: %v", name, value, places[i], err)
				}
			}
		}
	}
}

// TestKnownImages are those of field reports, with the right bytes of each.
func TestKnownImages(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		script string
		want   string // the sum, or what the refusal says
	}{
		{`yes grange | head -c 1M >s; qemu-img convert -c -O qcow2 -o cluster_size=16k s it`, "1048576 5bbc8c46affca69eec638c5fdb4c536e4c98534fda3e1391dd683b0bdd5d1e42"},
		{`yes grange | head -c 1M >s; qemu-img convert -c -O qcow2 -o compression_type=zstd s it`, "1048576 5bbc8c46affca69eec638c5fdb4c536e4c98534fda3e1391dd683b0bdd5d1e42"},
		{`qemu-img create -q -f qcow2 -o extended_l2=on it 1G; qemu-io -c 'write 1023M 4k' it`, "1073741824 a6169611a408cda1ff322a7adba589b2fbb5b32b6a7e8f569dc1177f69f6f922"},
		{`qemu-img create -q -f qcow2 -o cluster_size=512 it 1M; qemu-io -c 'write -P 7 0 1M' it; truncate -s 30000 it`, "cut short"},
		{`qemu-img create -q -f qcow2 it 64M; qemu-io -c 'write -P 7 0 64M' it; truncate -s 20M it`, "cut short"},
		{`qemu-img create -q -f qcow2 it 1M; printf '\xff\xff\xff\xff' | dd of=it bs=1 seek=36 conv=notrunc`, "L1"},
	} {
		os.Remove(filepath.Join(dir, "it"))
		shell(t, dir, c.script)
		got, err := judge(t, Options{Path: filepath.Join(dir, "it")})
		if said := fmt.Sprint(got, err); !strings.Contains(said, c.want) {
			t.Errorf("%s: %s, want %s", c.script, said, c.want)
		}
	}
}

// refusals are files that are no disks, or not alone, and a part of what is said.
var refusals = []string{
	`an outer file: qemu-img create -q -f qcow2 -b $PWD/raw -F raw it: flatten`,
	`a parent of qcow: qemu-img create -q -f qcow -b $PWD/raw -F raw it: flatten`,
	`a parent of qed: qemu-img create -q -f qed -b $PWD/raw -F raw it: flatten`,
	`a data file: qemu-img create -q -f qcow2 -o data_file=$PWD/raw2,data_file_raw=on it 1M: several files`,
	`a parent of vmdk: qemu-img create -q -f vmdk p.vmdk 1M; qemu-img create -q -f vmdk -b p.vmdk -F vmdk it: flatten`,
	`parts by name: qemu-img create -q -f vmdk -o subformat=monolithicFlat it 1M: several files`,
	`parts by names: qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse it 1M: several files`,
	`a part: qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse x.vmdk 1M; mv x-s001.vmdk it: several files`,
	`a vmdk that hides names: qemu-img create -q -f vmdk it 1M; printf '\0\0\0\0\0\0\0\0' | dd of=it bs=1 seek=12 conv=notrunc: several files`,
	`a key: for try in 1 2 3 4 5 6 7 8 9; do qemu-img create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 it 1M && break; done: encrypted`, // it gives up where the clock of its CPU stands,
	`zip: printf 'PK\003\004rest' >it: unzip -p`,
	`7z: printf '7z\274\257\047\034' >it: unpack`,
	`lz4: printf '\004\042\115\030' >it: inflate`,
	`deb: printf '!<arch>\ndebian' >it: unpack`,
	`dmg: cp raw it; (printf koly; head -c 508 /dev/zero) >>it: dmg2img`,
	`program: cp /bin/true it: program`,
	`text: seq 9999 >it: --format raw`,
	`odd: head -c 1000001 /dev/zero >it: sectors`,
	`two disks: echo >a.ovf; cp raw a.img; cp raw b.img; tar -cf it a.ovf a.img b.img: a.img, b.img`,
	`disk with holes: echo >a.ovf; cp --sparse=always raw a.img; head -c 20M /dev/urandom >a.iso; tar -Scf it a.ovf a.img a.iso: holes`,
	`disk with holes in PAX: echo >a.ovf; cp --sparse=always raw a.img; head -c 20M /dev/urandom >a.iso; tar --format=pax -Scf it a.ovf a.img a.iso: holes`,
	`no disk: echo >a.ovf; tar -cf it a.ovf: 0 disks`,
	`xva: echo >ova.xml; tar -cf it ova.xml: XenServer`,
	`container: echo >oci-layout; tar -cf it oci-layout: manifest.json`,
	`cut tar: cp raw a; cp raw b; tar -b1 -cf it a b; truncate -s -1024 it: end is missing`,
	`cut tar of one: cp raw a; tar -b1 -cf it a; truncate -s -5000 it: cut short`,
	`cut old tar: cp raw a; tar --format=v7 -b1 -cf it a; truncate -s -5000 it: cut short`,
	`cut tar.gz: cp raw a; tar -czf it a; truncate -s -20 it: cut short`,
	`garbage in gz: (gzip -c raw | head -c 5000; head -c 5000 /dev/zero) >it: damaged`,
	`pipe: mkfifo it: no file and no block device`,
	`terminal: ln -s /dev/null it: no file and no block device`,
}

func TestWhatIsNoDiskIsRefusedWithAdvice(t *testing.T) {
	raw, _ := sample(t)
	for _, line := range refusals {
		name, rest, _ := strings.Cut(line, ": ")
		at := strings.LastIndex(rest, ": ")
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			shell(t, dir, "cp --sparse=always "+raw+" raw; cp raw raw2; "+rest[:at])
			got, err := judge(t, Options{Path: filepath.Join(dir, "it")})
			if !errors.Is(err, content.ErrInvalid) || !strings.Contains(err.Error(), rest[at+2:]) {
				t.Errorf("%s, %v; want ErrInvalid that says %q", got, err, rest[at+2:])
			}
		})
	}
}

func TestRawInsists(t *testing.T) {
	dir := t.TempDir()
	for name, b := range map[string][]byte{"text": bytes.Repeat([]byte("some text\n"), 1000), "zip": []byte("PK\x03\x04"), "qcow2": append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 2000)...), "gz": {0x1f, 0x8b, 8}} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := judge(t, Options{Path: path, Format: Raw}); err != nil || got != sumOf(append(b, make([]byte, -len(b)&511)...)) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// archives make tar files of the folder tree.
func archives() map[string]string {
	return map[string]string{
		"v7": "tar -C tree --format=v7 -cf $f .", "ustar": "tar -C tree --format=ustar -cf $f .", "gnu": "tar -C tree --format=gnu -cf $f .", "pax": "tar -C tree --format=pax -cf $f .",
		"sparse": "tar -C tree -Scf $f .", "paxsparse": "tar -C tree --format=pax -Scf $f .", "gz": "tar -C tree -czf $f .", "xz": "tar -C tree -cJf $f .", "zst": "tar -C tree -c . | zstd -qc >$f", "bz2": "tar -C tree -cjf $f .",
		"global": "tar -C tree --format=pax --pax-option=globexthdr.name=x,comment=y -cf $f .", "nodots": "tar -C tree -cf $f a b c d", "one": "tar -C tree -b1 -cf $f .",
	}
}

func TestTarsOfEveryKindAreTrees(t *testing.T) {
	dir := t.TempDir()
	raw, _ := sample(t)
	shell(t, dir, "mkdir tree; cp --sparse=always "+raw+" tree/a; ln tree/a tree/b; mkdir tree/c; ln -s a tree/d")
	frugal(t)
	for name, script := range archives() {
		shell(t, dir, "f="+name+"; "+script)
		got := read(t, Options{Path: filepath.Join(dir, name)})
		if !isExt4In(got) {
			t.Errorf("%s: no file system", name)
		}
	}
}
func isExt4In(c *collect) bool {
	b := c.chunks[0]
	return string(b[1024+56:1024+58]) == "\x53\xef"
}

// TestACutTarIsNoTree cuts between members and inside them.
func TestACutTarIsNoTree(t *testing.T) {
	var b bytes.Buffer
	w, ends := tar.NewWriter(&b), []int{}
	for i := range 10 {
		body := make([]byte, 512*i) // of zeros, as what ends a tar
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Size: int64(len(body)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, b.Len())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tar")
	for size := b.Len(); size > 0; size -= 128 {
		if err := os.WriteFile(path, b.Bytes()[:size], 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := openSource(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = contents(s, false); (err == nil) != (size >= ends[9]+512) && (size < ends[9]+512 || size%512 == 0) {
			t.Errorf("cut to %d of %d: %v", size, b.Len(), err)
		}
		s.Close()
	}
}

func TestSourcesInUseAreRefused(t *testing.T) {
	dir := t.TempDir()
	raw, _ := sample(t)
	shell(t, dir, "qemu-img convert -O qcow2 "+raw+" it")
	path := filepath.Join(dir, "it")
	// A tool of QEMU's that has it open for writing, as a virtual machine does.
	cmd := exec.Command("qemu-io", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.WriteString(in, "length\n")
	}
	if err == nil {
		_, err = out.Read(make([]byte, 64))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []Format{Auto, Raw} {
		if _, err := judge(t, Options{Path: path, Format: format}); !errors.Is(err, content.ErrConflict) {
			t.Errorf("written to by another: %v, want ErrConflict", err)
		}
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	for _, format := range []Format{Auto, Raw} {
		d, err := Open(t.Context(), Options{Path: path, Format: format})
		if err != nil {
			t.Fatal(err)
		}
		change := func(context.Context, uint64, []byte) error { return os.Chtimes(path, time.Now(), time.Now()) }
		if err := errors.Join(Chunks(t.Context(), d, chunk, change, nil), d.Close()); !errors.Is(err, content.ErrConflict) {
			t.Errorf("%s, changed while it is read: %v, want ErrConflict", format, err)
		}
	}
}

func TestSocketsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), syscall.Close(fd))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := judge(t, Options{Path: path}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}

// TestAnImportCanBeCancelled while the child is asked.
func TestAnImportCanBeCancelled(t *testing.T) {
	dir := t.TempDir()
	raw, _ := sample(t)
	shell(t, dir, "qemu-img convert -c -O qcow2 "+raw+" it")
	ctx, cancel := context.WithCancel(t.Context())
	d, err := Open(ctx, Options{Path: filepath.Join(dir, "it")})
	if err != nil {
		t.Fatal(err)
	}
	err = Chunks(ctx, d, chunk, func(context.Context, uint64, []byte) error { cancel(); return nil }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(ctx, Options{Path: filepath.Join(dir, "it")}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
}
