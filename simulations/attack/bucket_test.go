package attack

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/lab"
)

// bucketOf is the folder of the founder's embedded origin, which holders of a bucket's
// credentials write to without any key.
func bucketOf(founder *lab.Node) string { return filepath.Join(founder.Data, "origin") }

// put writes an object as whoever may write to the bucket does.
func put(t *testing.T, bucket, key string, b []byte) {
	t.Helper()
	path := filepath.Join(bucket, filepath.FromSlash(key))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestPoisonedIndex: an index object that claims chunks for a pack that has none of
// them costs an image nothing.
func TestPoisonedIndex(t *testing.T) { poisoned(t, true) }

// TestPoisonedDirectory: nor does a pack whose own directory claims them.
func TestPoisonedDirectory(t *testing.T) { poisoned(t, false) }

// poisoned imports a disk whose chunks the bucket claims to have already: it is stored
// all the same, or refused, and what stands in the bucket is what is read.
func poisoned(t *testing.T, withIndex bool) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "beta")
	bucket := bucketOf(nodes[0])
	d := newDisk(t, l.Dir, imageSize, 100)
	var false, sound []frame
	for at := 0; at < len(d.bytes); at += content.ChunkSizeDefault {
		b := randomBytes(content.ChunkSizeDefault)
		false = append(false, frame{content.Sum(d.bytes[at : at+content.ChunkSizeDefault]), b})
		sound = append(sound, frame{content.Sum(b), b})
	}
	id := aPack(content.Mesh())
	object, index := forgePack(t, id, false)
	if withIndex {
		put(t, bucket, "index/"+string(aPack(content.Mesh()))+".index", index)
		object, _ = forgePack(t, id, sound)
	}
	put(t, bucket, id.Key(), object)

	out, err := nodes[0].Run(t.Context(), "image", "import", "image", d.path)
	t.Logf("import: %v: %s", err, out)
	if err != nil { // it may be refused, as long as it is not said to be done
		return
	}
	out, err = nodes[0].Run(t.Context(), "image", "verify", "image")
	t.Logf("verify: %v: %s", err, out)
	if err != nil {
		t.Error("an image that was imported is not sound")
	}
	if err := nodes[0].Stop(); err != nil { // and with it all caches go that have had the disk
		t.Fatal(err)
	}
	d.read(t, nodes[1], "v", "image")
}

// TestVerifyFollowsTheMap: a pack that is sound in itself, and does not hold what an
// image expects there, does not pass for the image's.
func TestVerifyFollowsTheMap(t *testing.T) {
	l := newLab(t)
	n := start(t, l, "alpha")[0]
	d := newDisk(t, l.Dir, imageSize, 101)
	run(t, n, "image", "import", "image", d.path)
	packs, err := filepath.Glob(filepath.Join(bucketOf(n), "packs", "mesh", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %v: %v", packs, err)
	}
	b, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	exchangeChunk(t, b)
	if err := os.WriteFile(packs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := n.Run(t.Context(), "image", "verify", "image")
	t.Logf("verify: %v: %s", err, out)
	if err == nil {
		t.Error("an image one of whose chunks is another's passes for sound")
	}
}

// TestFolderBucketModes: nobody else on the host may read a folder bucket, or write it.
func TestFolderBucketModes(t *testing.T) {
	l := newLab(t)
	n := start(t, l, "alpha")[0]
	d := newDisk(t, l.Dir, 1<<20, 102)
	run(t, n, "image", "import", "image", d.path)
	err := filepath.WalkDir(bucketOf(n), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFIFOInBucket: files of a folder bucket that never end hold up nobody but who asks
// for them, and that not for ever.
func TestFIFOInBucket(t *testing.T) {
	l := newLab(t)
	n := start(t, l, "alpha")[0]
	d := newDisk(t, l.Dir, 1<<20, 103)
	run(t, n, "image", "import", "image", d.path)
	for _, key := range []string{"records/image/pipe", aPack(content.Mesh()).Key(), "index/" + string(aPack(content.Mesh())) + ".index"} {
		if err := unix.Mkfifo(filepath.Join(bucketOf(n), filepath.FromSlash(key)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	e := newDisk(t, l.Dir, 1<<20, 104)
	for _, args := range [][]string{
		{"image", "ls"}, {"image", "show", "pipe"}, {"resolve", "pipe"}, {"image", "import", "pipe", d.path},
		{"image", "import", "other", e.path}, {"image", "show", "image"}, {"image", "rm", "image"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
		_, err := n.Run(ctx, args...)
		late := ctx.Err() != nil
		cancel()
		if late {
			t.Fatalf("%v: no end after %s", args, readTimeout)
		}
		t.Logf("%v: %v", args, err)
	}
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
}

// TestOldRecordInBucketIsNoticed: a bucket that was set back to an older record of a
// name is not taken at its word by a node that has never seen the newer one, when
// another member has.
func TestOldRecordInBucketIsNoticed(t *testing.T) {
	l := newLab(t)
	nodes := start(t, l, "alpha", "beta")
	old, young := newDisk(t, l.Dir, 1<<20, 105), newDisk(t, l.Dir, 1<<20, 106)
	path := recordFile(bucketOf(nodes[0]), content.KindImage, "image")
	run(t, nodes[0], "image", "import", "image", old.path)
	record, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	run(t, nodes[0], "image", "import", "image", young.path, "--replace")
	if r := get[api.Resolved](t, nodes[1], "/api/resolve/image"); r.Version != 2 {
		t.Fatalf("beta sees version %d before the bucket is set back", r.Version)
	}
	put(t, bucketOf(nodes[0]), "records/image/image", record)
	cold := start(t, l, "gamma")[0]
	var r api.Resolved
	noticed := within(t.Context(), 2*quietTime, func(ctx context.Context) bool { // it may look behind the first answer
		err := cold.Get(ctx, "/api/resolve/image", &r)
		return err != nil && !errors.Is(err, context.DeadlineExceeded) || err == nil && (r.Version == 2 || !r.Confirmed)
	})
	t.Logf("the cold node sees version %d, confirmed: %v, %s old", r.Version, r.Confirmed, time.Duration(r.Age*float64(time.Second)))
	if !noticed {
		t.Errorf("the cold node calls version %d confirmed, and members know version 2", r.Version)
	}
}
