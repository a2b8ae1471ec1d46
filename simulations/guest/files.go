package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	// filesCount are replaced, each by a new one of its name.
	filesCount  = 8
	fileSizeMax = 64 << 10
	// blocksCount of blockSize bytes each are written in their place, in one file.
	blocksCount = 64
	blockSize   = 4096
	blocksName  = "blocks"
)

// Files changes files in a folder of a file system, each change synced, and knows then
// what is there after a crash: each file is one of those that it was since the one that was
// last synced, whole; each sector of a file that is written in place too. One goroutine uses
// it.
type Files struct {
	dir    string
	rng    *rand.Rand
	files  [filesCount]versions
	blocks [blocksCount]versions
	synced int
}

// versions are those that a thing had: the last that was synced, and the last of all.
type versions struct{ synced, last uint64 }

// NewFiles makes what it changes in place, in a folder that is empty.
func NewFiles(dir string, seed uint64) (*Files, error) {
	f, err := os.Create(filepath.Join(dir, blocksName))
	if err != nil {
		return nil, err
	}
	_, err = f.Write(make([]byte, blocksCount*blockSize))
	if err := errors.Join(err, f.Sync(), f.Close(), syncFolder(dir)); err != nil {
		return nil, err
	}
	return &Files{dir: dir, rng: rand.New(rand.NewPCG(seed, 0))}, nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Synced is how often the file system has said that something is there for good.
func (f *Files) Synced() int { return f.synced }

// pattern is what a version of a file or block is full of.
func pattern(p []byte, at int, version uint64) []byte {
	for i := 0; i+16 <= len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(at))
		binary.LittleEndian.PutUint64(p[i+8:], version)
	}
	return p
}

// size is how long a version of a file is.
func size(at int, version uint64) int {
	return 16 * (1 + int((version*2654435761+uint64(at))%(fileSizeMax/16)))
}

// Step replaces a file, or writes some blocks.
func (f *Files) Step() error {
	if f.rng.IntN(2) == 0 {
		return f.replace(f.rng.IntN(filesCount))
	}
	return f.overwrite()
}

func (f *Files) name(at int) string { return filepath.Join(f.dir, fmt.Sprintf("file%d", at)) }

func (f *Files) replace(at int) error {
	v := &f.files[at]
	v.last++
	next := f.name(at) + ".new"
	file, err := os.Create(next)
	if err != nil {
		return err
	}
	_, err = file.Write(pattern(make([]byte, size(at, v.last)), at, v.last))
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(next, f.name(at)), syncFolder(f.dir)); err != nil {
		return err
	}
	v.synced = v.last
	f.synced++
	return nil
}

func (f *Files) overwrite() error {
	file, err := os.OpenFile(filepath.Join(f.dir, blocksName), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for range 1 + f.rng.IntN(8) {
		at := f.rng.IntN(blocksCount)
		f.blocks[at].last++
		if _, err := file.WriteAt(pattern(make([]byte, blockSize), at, f.blocks[at].last), int64(at)*blockSize); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	for at := range f.blocks {
		f.blocks[at].synced = f.blocks[at].last
	}
	f.synced++
	return nil
}

// Check reads all files, and says what is not as it should be. What it finds is what is
// there from now on: after a crash it is called once before anything is changed.
func (f *Files) Check() error {
	for at := range f.files {
		p, err := os.ReadFile(f.name(at))
		v := &f.files[at]
		if errors.Is(err, os.ErrNotExist) && v.synced == 0 {
			v.last = 0
			continue
		}
		if err != nil {
			return err
		}
		found, err := v.found(p)
		if err == nil && !bytes.Equal(p, pattern(make([]byte, size(at, found)), at, found)) {
			err = fmt.Errorf("%d bytes, not those of version %d", len(p), found)
		}
		if err != nil {
			return fmt.Errorf("file %d: %w", at, err)
		}
		v.synced, v.last = found, found
	}
	p, err := os.ReadFile(filepath.Join(f.dir, blocksName))
	if err != nil || len(p) != blocksCount*blockSize {
		return fmt.Errorf("the file of blocks has %d bytes: %w", len(p), err)
	}
	for at := range f.blocks {
		if err := f.blocks[at].check(p[at*blockSize:][:blockSize], at); err != nil {
			return fmt.Errorf("block %d: %w", at, err)
		}
	}
	return nil
}

// found is the version that bytes begin with, if it may be there.
func (v versions) found(p []byte) (uint64, error) {
	if len(p) < 16 {
		return 0, fmt.Errorf("%d bytes", len(p))
	}
	found := binary.LittleEndian.Uint64(p[8:])
	if found < v.synced || found > v.last {
		return 0, fmt.Errorf("version %d is there; %d was synced, and %d the last", found, v.synced, v.last)
	}
	return found, nil
}

// check looks at each sector of a block, and takes what is there for right.
func (v *versions) check(block []byte, at int) error {
	now := versions{synced: v.last}
	for off := 0; off < len(block); off += sector {
		p := block[off:][:sector]
		found, err := v.found(p)
		want := make([]byte, sector)
		if found > 0 {
			pattern(want, at, found)
		}
		if err == nil && !bytes.Equal(p, want) {
			err = fmt.Errorf("bytes that nobody has written: %x", p[:32])
		}
		if err != nil {
			return fmt.Errorf("sector %d: %w", off/sector, err)
		}
		now.synced, now.last = min(now.synced, found), max(now.last, found)
	}
	*v = now
	return nil
}
