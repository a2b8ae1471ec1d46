package csi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/grangemesh/grange/simulations/csi/built"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestDriver goes through what pods do, on one farm: that of a volume's life first, the loss of a node last.
func TestDriver(t *testing.T) {
	hosts := farm(t, "a", "b", "c") // who takes over needs another that holds what it takes
	for _, part := range []struct {
		name string
		test func(t *testing.T, hosts []*host)
	}{
		{"Sanity", sanity}, {"DataTravels", dataTravels}, {"MountedFileSystemGrows", mountedFileSystemGrows}, {"ClonesAndSnapshots", clonesAndSnapshots},
		{"NothingIsFormattedTwice", nothingIsFormattedTwice}, {"CallsAtOnce", callsAtOnce}, {"DriverIsKilled", driverIsKilled}, {"NodeRestarts", nodeRestarts}, {"Takeover", takeover},
	} {
		t.Run(part.name, func(t *testing.T) {
			for _, h := range hosts {
				h.t = t
			}
			begun := time.Now()
			part.test(t, hosts)
			t.Logf("%.1f s", time.Since(begun).Seconds())
		})
	}
}

// sanity runs what needs disks of the suite that drivers are measured by, in a soak also with disks as they are; the rest runs outside.
func sanity(t *testing.T, hosts []*host) {
	for _, kind := range soak.Of([]string{"mount"}, []string{"mount", "block"}) {
		if err := built.Sanity(t.Context(), "./csi-sanity", "unix://"+hosts[0].data+".csi.sock", t.TempDir(), "--ginkgo.focus", soak.Of("Node Service should (work|be idempotent)$", "Node Service"), "--csi.testvolumeaccesstype", kind); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	if out := must(t, "./grange volume ls --all --json --data "+hosts[0].data); out != "[]" {
		t.Errorf("left: %s", out)
	}
}

// dataTravels has pods on two nodes use one volume, one after the other.
func dataTravels(t *testing.T, hosts []*host) {
	a, b := hosts[0], hosts[1]
	for _, kind := range soak.Of([]string{"ext4"}, []string{"ext4", "xfs"}) {
		c := a.create(wish("travels-"+kind, mounted(kind, writer)))
		at := c.begin(a)
		sum := must(t, "head -c 500000 /dev/urandom >"+at+"/file && sha256sum <"+at+"/file")
		wants(t, c.attach(b), codes.FailedPrecondition, a.id)
		wants(t, c.mount(b), codes.FailedPrecondition, "of farm lyon has it")
		_, err := b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: c.id})
		wants(t, err, codes.FailedPrecondition, "")
		_, err = a.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: c.id})
		wants(t, err, codes.FailedPrecondition, "in use")
		c.end(a)
		at = c.begin(b)
		if got := must(t, "sha256sum <"+at+"/file"); got != sum {
			t.Errorf("%s: %s, want %s", kind, got, sum)
		}
		c.end(b)
		// What nobody writes many read.
		read := *c
		read.as = mounted(kind, reader)
		for _, h := range hosts {
			at := read.begin(h)
			must(t, "sha256sum <"+at+"/file | grep '"+sum+"' && ! touch "+at+"/file")
		}
		for _, h := range hosts {
			read.end(h)
		}
		if _, err := a.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: c.id}); err != nil {
			t.Error(err)
		}
	}
}

// mountedFileSystemGrows, on the node that has it, though the controller is on another.
func mountedFileSystemGrows(t *testing.T, hosts []*host) {
	for _, kind := range soak.Of([]string{"ext4"}, []string{"ext4", "xfs"}) {
		c := hosts[0].create(wish("grows-"+kind, mounted(kind, writer)))
		at := c.begin(hosts[1])
		must(t, "cp /init "+at+"/file")
		size := func() int64 {
			out, err := hosts[1].NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: c.id, VolumePath: at})
			if err != nil || out.VolumeCondition.Abnormal {
				t.Fatalf("%v, %v", out, err)
			}
			return out.Usage[0].Total
		}
		before := size()
		more := &csi.CapacityRange{RequiredBytes: 512 * mib}
		grown, err := hosts[0].ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: c.id, CapacityRange: more, VolumeCapability: c.as})
		if err != nil || !grown.NodeExpansionRequired {
			t.Fatalf("%v, %v", grown, err)
		}
		for range 2 {
			if _, err := hosts[1].NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: c.id, VolumePath: at, CapacityRange: more}); err != nil {
				t.Fatal(err)
			}
		}
		if after := size(); after < before+150*mib {
			t.Errorf("%s had %d bytes, and has %d", kind, before, after)
		}
		must(t, "cmp /init "+at+"/file")
		c.end(hosts[1])
		if !soak.Full() {
			continue
		}
		// At rest it grows too, and what is on it when it is staged.
		if _, err := hosts[0].ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: c.id, CapacityRange: &csi.CapacityRange{RequiredBytes: 640 * mib}}); err != nil {
			t.Fatal(err)
		}
		before, at = size0(t, c, hosts[1]), c.target+"b"
		if before < 550*mib {
			t.Errorf("%s has %d bytes after it grew at rest", kind, before)
		}
		c.end(hosts[1])
	}
}

// size0 begins a claim, and says how large its file system is.
func size0(t *testing.T, c *claim, h *host) int64 {
	t.Helper()
	out, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: c.id, VolumePath: c.begin(h)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Usage[0].Total
}

// clonesAndSnapshots: each has the bytes of its moment, also where two of one xfs are mounted on a host.
func clonesAndSnapshots(t *testing.T, hosts []*host) {
	a, b := hosts[0], hosts[1]
	for _, kind := range soak.Of([]string{"xfs"}, []string{"ext4", "xfs"}) {
		as := mounted(kind, writer)
		c := a.create(wish("source-"+kind, as))
		at := c.begin(b)
		must(t, "echo one >"+at+"/file && sync")
		snap := &csi.CreateSnapshotRequest{Name: "snap-" + kind, SourceVolumeId: c.id}
		by := soak.Of(b, a) // a call to the node that has the volume ends after half a minute, which an emulated one may need
		var id string
		until(t, "the snapshot is ready", func() bool {
			out, err := by.CreateSnapshot(t.Context(), snap)
			if err != nil || id != "" && out.Snapshot.SnapshotId != id {
				t.Fatalf("%v, %v, was %s", out, err, id)
			}
			id = out.Snapshot.SnapshotId
			return out.Snapshot.ReadyToUse
		})
		must(t, "echo two >"+at+"/file && sync")
		restore, clone := wish("restored-"+kind, as), wish("clone-"+kind, as)
		restore.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
		clone.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: c.id}}}
		restore.CapacityRange.RequiredBytes *= 2
		for want, r := range map[string]*csi.CreateVolumeRequest{"one": restore, "two": clone} {
			of := a.create(r)
			if got := must(t, "cat "+of.begin(b)+"/file"); got != want {
				t.Errorf("%s: %q, want %q", r.Name, got, want)
			}
			if r == restore {
				if has := must(t, "findmnt -nbo SIZE "+of.target+"b"); len(has) < len("100000000") {
					t.Errorf("%s: its file system has %s bytes, and not all of its disk", r.Name, has)
				}
			}
			of.end(b)
			r.VolumeContentSource = nil
			_, err := a.CreateVolume(t.Context(), r)
			wants(t, err, codes.AlreadyExists, "made from")
		}
		c.end(b)
		if _, err := b.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: c.id}); err != nil {
			t.Error(err)
		}
		if _, err := b.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
			t.Error(err)
		}
	}
}

// callsAtOnce: of calls that are made more than once at a time each is done, or told to come again, and all is done once.
func callsAtOnce(t *testing.T, hosts []*host) {
	h := hosts[0]
	c := &claim{t: t, id: "at-once", as: mounted("ext4", writer), stage: t.TempDir() + "/s", target: t.TempDir() + "/t"}
	atOnce := func(what string, call func() error) {
		t.Helper()
		const calls = 6
		ends := make(chan error, calls)
		for range calls {
			go func() { ends <- call() }()
		}
		done := 0
		for range calls {
			switch err := <-ends; {
			case err == nil:
				done++
			case status.Code(err) != codes.Aborted:
				t.Fatalf("%s: %v", what, err)
			}
		}
		if done == 0 {
			t.Fatalf("%s: none of %d is done", what, calls)
		}
	}
	ctx := t.Context()
	atOnce("create", func() error { _, err := h.CreateVolume(ctx, wish(c.id, c.as)); return err })
	if err := c.attach(h); err != nil {
		t.Fatal(err)
	}
	atOnce("mount", func() error { return c.mount(h) })
	must(t, "echo mine >"+c.target+"a/file")
	atOnce("mount again", func() error { return c.mount(h) })
	if got := must(t, "cat "+c.target+"a/file; findmnt -no TARGET "+c.target+"a | wc -l"); got != "mine\n1" {
		t.Errorf("it has, and is mounted: %q", got)
	}
	atOnce("snapshot", func() error {
		_, err := h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "at-once", SourceVolumeId: c.id})
		return err
	})
	list, err := h.ListSnapshots(ctx, &csi.ListSnapshotsRequest{SourceVolumeId: c.id})
	if err != nil || len(list.Entries) != 1 {
		t.Errorf("%v, %v, want one snapshot", list, err)
	}
	atOnce("unmount", func() error { return c.unmount(ctx, h) })
	atOnce("delete", func() error { _, err := h.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: c.id}); return err })
}

// driverIsKilled kills the driver in the middle of each step of a volume's life; the step is repeated, as Kubernetes
// does.
func driverIsKilled(t *testing.T, hosts []*host) {
	h := hosts[0]
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, seed))
	for round := range soak.Of(1, 20) {
		c := &claim{t: t, id: "killed-" + string(rune('a'+round%26)), as: mounted("ext4", writer), stage: t.TempDir() + "/s", target: t.TempDir() + "/t"}
		steps := []func(context.Context) error{
			func(ctx context.Context) error { _, err := h.CreateVolume(ctx, wish(c.id, c.as)); return err },
			func(ctx context.Context) error { return c.attach(h) },
			func(ctx context.Context) error { return c.mount(h) },
			func(ctx context.Context) error {
				if _, err := os.Stat(c.target + "a/file"); err != nil {
					return os.WriteFile(c.target+"a/file", []byte(c.id), 0o600)
				}
				return nil
			},
			func(ctx context.Context) error {
				_, err := h.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "of-" + c.id, SourceVolumeId: c.id})
				return err
			},
			func(ctx context.Context) error { return c.unmount(ctx, h) },
			func(ctx context.Context) error {
				_, err := h.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: c.id, NodeId: h.id})
				return err
			},
			func(ctx context.Context) error {
				_, err := h.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: c.id, CapacityRange: &csi.CapacityRange{RequiredBytes: 128 * mib}})
				return err
			},
			func(ctx context.Context) error { return c.attach(h) },
			func(ctx context.Context) error { return c.mount(h) },
			func(ctx context.Context) error {
				b, err := os.ReadFile(c.target + "a/file")
				if string(b) != c.id {
					t.Errorf("step 10: %q, %v", b, err)
				}
				return err
			},
			func(ctx context.Context) error { return c.unmount(ctx, h) },
			func(ctx context.Context) error {
				_, err := h.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: c.id})
				return err
			},
		}
		for i, step := range steps {
			begun := make(chan error, 1)
			go func() { begun <- step(t.Context()) }()
			if i != 3 && i != 10 && random.IntN(soak.Of(3, 1)) == 0 { // those are the pod's
				// A call takes tenths of a second here.
				<-time.After(time.Duration(random.IntN(300)) * time.Millisecond)
				h.driver.kill(t)
				h.drive()
			}
			err := <-begun
			until(t, fmt.Sprintf("step %d", i), func() bool {
				if code := status.Code(err); err != nil && code != codes.Unavailable && code != codes.Aborted {
					t.Fatalf("step %d: %v", i, err)
				}
				if err != nil {
					err = step(t.Context())
				}
				return err == nil
			})
		}
	}
	if out := must(t, "dmesg | grep 'I/O error' || true"); out != "" {
		t.Error(out)
	}
}

// nodeRestarts has a pod write while its node hands over, and while it is killed and started: it sees no error.
func nodeRestarts(t *testing.T, hosts []*host) {
	h := hosts[0]
	c := h.create(wish("restarts", mounted("ext4", writer)))
	at := c.begin(h)
	stop := filepath.Join(t.TempDir(), "enough")
	pod := exec.Command("bash", "-euc", `while ! [ -e `+stop+` ]; do
			head -c 300000 /dev/urandom >/tmp/file
			cp /tmp/file `+at+` && sync -f `+at+` && echo 1 >/proc/sys/vm/drop_caches && cmp /tmp/file `+at+`/file
		done`)
	pod.Stdout, pod.Stderr = t.Output(), t.Output()
	if err := pod.Start(); err != nil {
		t.Fatal(err)
	}
	for range soak.Of(1, 20) {
		h.handOver()
		h.node.kill(t)
		if out, err := h.Probe(t.Context(), &csi.ProbeRequest{}); err != nil || out.Ready.GetValue() {
			t.Errorf("without its node the driver says %v, %v", out, err)
		}
		_, err := h.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: c.id, VolumePath: at})
		wants(t, err, codes.Unavailable, "no node answers")
		h.start()
	}
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := pod.Wait(); err != nil {
		t.Errorf("the pod: %v", err)
	}
	c.end(h)
	if out := must(t, "dmesg | grep 'I/O error' || true"); out != "" {
		t.Error(out)
	}
}

// nothingIsFormattedTwice: whatever a disk has, and whatever blkid says or does not say of it, what was written stays.
func nothingIsFormattedTwice(t *testing.T, hosts []*host) {
	h := hosts[0]
	c := h.create(wish("kept", mounted("ext4", writer)))
	at := c.begin(h)
	must(t, "echo mine >"+at+"/file")
	c.end(h)
	tools := t.TempDir()
	all := []struct{ what, script, says string }{
		{"finds nothing", "exit 2", "has data"}, {"fails", "exit 4", "blkid"}, {"is killed", "kill -9 $$", "blkid"}, {"says nothing", "exit 0", "blkid"}, {"finds another", "echo TYPE=xfs", "has xfs, not ext4"},
	}
	for _, broken := range all[:soak.Of(1, len(all))] { // the driver's own tests have them all
		must(t, "printf '#!/bin/sh\n"+broken.script+"\n' >"+tools+"/blkid && chmod +x "+tools+"/blkid && mount --bind "+tools+"/blkid /usr/sbin/blkid")
		err := errors.Join(c.attach(h), c.mount(h))
		must(t, "umount /usr/sbin/blkid")
		if err == nil || !strings.Contains(err.Error(), broken.says) {
			t.Errorf("when blkid %s: %v", broken.what, err)
		}
	}
	wrong := *c
	wrong.as = mounted("xfs", writer)
	wants(t, wrong.mount(h), codes.FailedPrecondition, "has ext4, not xfs")
	if got := must(t, "cat "+c.begin(h)+"/file"); got != "mine" {
		t.Errorf("it has %q", got)
	}
	c.end(h)
	// A disk that pods wrote to as such has data too.
	raw := h.create(wish("raw", block()))
	must(t, "echo mine | dd bs=512 seek=1000 conv=sync,notrunc of="+raw.begin(h))
	raw.end(h)
	asTree := *raw
	asTree.as = mounted("ext4", writer)
	wants(t, errors.Join(asTree.attach(h), asTree.mount(h)), codes.FailedPrecondition, "has data and no file system")
	asTree.as = mounted("ext4", reader)
	asTree.end(h)
	if got := must(t, "dd bs=512 skip=1000 count=1 status=none if="+raw.begin(h)+" | head -c 4"); got != "mine" {
		t.Errorf("the disk has %q", got)
	}
	raw.end(h)
	// What a format that was cut short has left is formatted again.
	half := h.create(wish("half", mounted("ext4", writer)))
	must(t, "printf '#!/bin/sh\nhead -c 100000 /dev/urandom | dd conv=notrunc status=none of=$6; exit 1\n' >"+tools+"/mkfs && chmod +x "+tools+"/mkfs && mount --bind "+tools+"/mkfs /usr/sbin/mkfs.ext4")
	err := errors.Join(half.attach(h), half.mount(h))
	must(t, "umount /usr/sbin/mkfs.ext4")
	wants(t, err, codes.Internal, "mkfs.ext4")
	h.driver.kill(t)
	h.drive()
	must(t, "touch "+half.begin(h)+"/file")
	half.end(h)
}

// takeover loses the node of a volume. Another has it only where its class asks for that, and what was flushed is held by a member; the
// node that was lost and is back writes to it no more.
func takeover(t *testing.T, hosts []*host) {
	a, b := hosts[0], hosts[1]
	// The controller is on c.
	c := hosts[2]
	class := map[string]string{"durability": "farm:1", "takeover": "true"}
	taken, kept := wish("taken", block()), wish("stays", block())
	taken.Parameters, kept.Parameters = class, map[string]string{"durability": "farm:1"}
	lost := map[string]*claim{"taken": c.create(taken), "kept": c.create(kept)}
	unsafe := wish("unsafe", block())
	unsafe.Parameters = map[string]string{"takeover": "true"}
	_, err := c.CreateVolume(t.Context(), unsafe)
	wants(t, err, codes.InvalidArgument, "farm:K")
	for _, v := range lost {
		at := v.begin(a)
		must(t, "echo mine | dd bs=4096 conv=sync,fsync,notrunc of="+at)
		_, err := c.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: a.id})
		wants(t, err, codes.FailedPrecondition, "which is there")
		wants(t, through(v, c, b), codes.FailedPrecondition, "which is there")
	}
	a.node.kill(t)
	until(t, "a is gone", func() bool {
		_, err := c.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: "taken", NodeId: a.id})
		return err == nil
	})
	wants(t, through(lost["kept"], c, b), codes.FailedPrecondition, "which is away")
	if err := errors.Join(through(lost["taken"], c, b), lost["taken"].mount(b)); err != nil {
		t.Fatal(err)
	}
	if got := must(t, "head -c 4 "+lost["taken"].target+"b"); got != "mine" {
		t.Errorf("taken over it has %q", got)
	}
	// A stage by an older publication takes nothing back.
	old := *lost["taken"]
	old.published = map[string]string{"generation": "1", "takeover": "true"}
	a.start()
	wants(t, old.mount(a), codes.FailedPrecondition, "")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+lost["taken"].target+"a", "bs=4096", "count=1", "conv=fsync,notrunc").CombinedOutput(); err == nil {
		t.Errorf("the node that was lost writes: %s", out)
	}
	if got := must(t, "echo 3 >/proc/sys/vm/drop_caches; head -c 4 "+lost["taken"].target+"b"); got != "mine" {
		t.Errorf("with two nodes it has %q", got)
	}
	// What pods had there ends as if nothing had happened, and b keeps what it has taken.
	until(t, "it ends where it was taken from", func() bool {
		err := lost["taken"].unmount(t.Context(), a)
		if err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		return err == nil
	})
	must(t, "echo ours | dd bs=4096 conv=sync,fsync,notrunc of="+lost["taken"].target+"b")
	lost["taken"].end(b)
	lost["kept"].end(a)
}

// through publishes to a host by the controller on another.
func through(v *claim, controller, to *host) error {
	there := *controller
	there.id = to.id
	return v.attach(&there)
}
