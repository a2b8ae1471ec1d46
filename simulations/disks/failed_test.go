package disks

import (
	"strings"
	"testing"
)

// TestFailedVolumeKeepsItsUsers starts the node of a mounted disk whose journal is
// not there: nobody loses the disk, or the journal when it is back, but by force.
func TestFailedVolumeKeepsItsUsers(t *testing.T) {
	n := begin(t)
	device := n.must(t, "volume", "create", "torn", "--size", "32MiB")
	shell(t, "mkfs.ext4 -q "+device+" && mount "+device+" /mnt && cp /init /mnt")
	folder := shell(t, "ls -dt "+n.data+"/volumes/*/ | head -n 1") // others leave theirs
	lose := func() {
		t.Helper()
		if err := n.kill(); err != nil {
			t.Fatal(err)
		}
		shell(t, "mkdir /tmp/torn && mv "+folder+"/*.seg /tmp/torn")
		n = begin(t)
		if out := n.must(t, "volume", "show", "torn"); !strings.Contains(out, "failed") {
			t.Fatalf("without its journal: %s", out)
		}
	}
	lose()
	for _, command := range []string{"detach", "rm"} {
		if out, err := n.run(t.Context(), "volume", command, "torn"); err == nil || !strings.Contains(out, "mounted on /mnt") {
			t.Errorf("volume %s: %v: %s", command, err, out)
		}
	}
	shell(t, "mv /tmp/torn/* "+folder+" && rmdir /tmp/torn")
	if again := n.must(t, "volume", "attach", "torn"); again != device {
		t.Errorf("with its journal again it is %s, was %s", again, device)
	}
	shell(t, "sync && echo 3 >/proc/sys/vm/drop_caches && cmp /init /mnt/init")
	lose()
	n.must(t, "volume", "rm", "torn", "--force")
	shell(t, "umount /mnt; test ! -e "+device+"; rm -r /tmp/torn")
}
