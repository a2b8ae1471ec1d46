package csi

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNothingIsFormattedTwice: what was written stays, whatever blkid says or does not say of a disk; here that is a file.
func TestNothingIsFormattedTwice(t *testing.T) {
	dir := t.TempDir()
	path, mark, tools := filepath.Join(dir, "disk"), filepath.Join(dir, markName), filepath.Join(dir, "tools")
	if err := os.WriteFile(path, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	k := disk{path: path, kind: ext4, mark: "web 1\n"}
	if has, err := k.prepare(t.Context(), mark); has != ext4 || err != nil {
		t.Fatalf("%q, %v", has, err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	for script, says := range map[string]string{"exit 2": "has data", "exit 4": "blkid", "kill -9 $$": "blkid", "exit 0": "blkid", "echo TYPE=xfs": "has xfs, not ext4", "echo PTTYPE=dos": "dos partitions"} {
		if err := os.WriteFile(tools+"/blkid", []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := k.prepare(t.Context(), mark); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("when blkid does %q: %v", script, err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, was) {
			t.Errorf("when blkid does %q the disk is changed: %v", script, err)
		}
	}
	if err := os.RemoveAll(tools); err != nil {
		t.Fatal(err)
	}
	if has, err := k.prepare(t.Context(), mark); has != ext4 || err != nil {
		t.Errorf("again: %q, %v", has, err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("it is marked as one that is being formatted")
	}
}
