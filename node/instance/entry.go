package instance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// What is in the folder of an instance.
const (
	entryFile  = "instance.json"
	dataDir    = "data"   // what the workload has
	logFile    = "log"    // what it says
	stowedFile = "stowed" // what its files had become when they were read last
	configFile = "config" // of the workload
	baseFile   = "base"   // the root of the tree that lowerDir shows
	lowerDir   = "lower"  // the tree that the data began as, where it need not be here; what was
	upperDir   = "upper"  // written since, for which the kernel has
	workDir    = "work"   // a folder of its own; data shows both together
	lowerLog   = "lower.log"
)

// entry is what this node knows of an instance: instance.json in its folder, written before each step.
type entry struct {
	Name string     `json:"name"`
	Spec terms.Spec `json:"spec"`
	state.Instance
	// Takeover says that it is to be had although another node has it.
	Takeover bool `json:"takeover,omitempty"`
	// ID, Epoch and Incarnation are those of the record that names this node; before it does, those that it is to have.
	ID          catalog.InstanceID `json:"id"`
	Epoch       uint64             `json:"epoch"`
	Incarnation uint64             `json:"incarnation"`
	Port        int                `json:"port,omitempty"`
	Process     *process.ID        `json:"process,omitempty"`
	// Said is how long its log was when that was started.
	Said int64 `json:"said,omitempty"`
	// Disk is the volume that is made for a machine, until it has run: then the record names it.
	Disk content.VolumeID `json:"disk,omitzero"`
	// Slept is the last entry of that one's journal which the memory of a machine that is hibernated knows of.
	Slept uint64 `json:"slept,omitempty"`
	// Detail is what has failed last.
	Detail string `json:"detail,omitempty"`
	why    error  // the same, as far as it has failed since this start
	// Since is when it got into its state.
	Since time.Time `json:"since"`
	// Root and Saved are of the tree that was put away last.
	Root  content.CID `json:"root,omitzero"`
	Saved time.Time   `json:"saved,omitzero"`
}

// load reads the entry of a folder; one that can't be read is ErrCorrupt.
func load(dir string) (e entry, err error) {
	b, err := os.ReadFile(filepath.Join(dir, entryFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("%s: %w: %w", filepath.Join(dir, entryFile), content.ErrCorrupt, err)
	}
	return e, nil
}

// save has an entry on disk for good.
func (e entry) save(dir string) error {
	b, err := json.MarshalIndent(e, "", " ")
	if err == nil {
		err = durable.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = durable.Place(filepath.Join(dir, entryFile), append(b, '\n'), 0o600)
	}
	if err == nil {
		err = durable.SyncDir(dir)
	}
	if durable.IsFull(err) {
		err = fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	return err
}

// loadStowed reads what files had become; what is not there, or damaged, is nothing, and has them read again.
func loadStowed(dir string) (out images.Stowed) {
	body, err := loadSummed(filepath.Join(dir, stowedFile))
	if err != nil || json.Unmarshal(body, &out) != nil {
		return nil
	}
	return out
}

// saveStowed writes it behind its sum, for the next time.
func saveStowed(dir string, now images.Stowed) error {
	body, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return saveSummed(filepath.Join(dir, stowedFile), body)
}

// loadSummed reads a file that saveSummed has written; another is ErrCorrupt.
func loadSummed(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sum, body, _ := bytes.Cut(b, []byte("\n"))
	if content.Sum(body).String() != string(sum) {
		return nil, fmt.Errorf("%s: %w: its sum is another", path, content.ErrCorrupt)
	}
	return body, nil
}

// saveSummed writes a file behind its sum.
func saveSummed(path string, body []byte) error {
	return durable.Place(path, slices.Concat([]byte(content.Sum(body).String()+"\n"), body), 0o600)
}

// discard removes a folder without an entry; one that has more than what a crash leaves of an entry that was being written
// stays.
func discard(dir string) error {
	in, err := os.ReadDir(dir)
	for _, f := range in {
		if strings.HasPrefix(f.Name(), durable.TempPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}

// strip removes all but the entry.
func strip(dir string) error {
	in, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range in {
		if f.Name() != entryFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, f.Name())))
		}
	}
	if err == nil {
		err = durable.SyncDir(dir)
	}
	return err
}
